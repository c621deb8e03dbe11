"""Candidates of one training side by side: each is trained on the older training rows and judged on the newest ones.

The newest rows are new to all of them, as the rows of production will be, and the gate's holdout stays unseen.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipelines import measures
from pipelines.encoding import find_scales, read_scales, signature
from pipelines.errors import DataError, IntegrityError, PerennialError, TrainingDiverged, Unavailable
from pipelines.estimators import fitting
from pipelines.fields import Fields
from pipelines.files import write_atomic
from pipelines.params import MORE_IS_BETTER, EstimatorParams, Params, family_of
from pipelines.scored import Scored
from pipelines.text import TOKENIZER
from pipelines.training import candidate as candidates
from pipelines.training.candidate import Network, Task
from pipelines.training.dataset import as_rows, read_columns
from pipelines.training.group import local_device
from pipelines.training.launch import Beside
from pipelines.training.rows import Rows
from pipelines.training.weights import load_weights

FOLDER = "compared"
"""In the working folder: what was compared so far, a file each, which a try that follows takes as it is."""
ROWS, TEXTS = 65_536, 1_024
"""Rows of a table that are answered at once, and rows with a text."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compared:
    """How one candidate did on the newest rows: ``value`` of ``metric``, or the ``error`` that took it out.

    ``seconds`` is the wall time of its training and its answers. A trial of a search has the name of its ``candidate``,
    and ``values`` by dotted path.
    """

    name: str
    family: str
    metric: str
    value: float | None
    seconds: float
    error: str = ""
    candidate: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    pruned: bool = False


Report = Callable[[int, float], None]
"""Is told of the metric on the newest rows after an epoch, and raises :class:`Pruned` where that is enough."""


class Pruned(Exception):
    """A training that ends before its time, because others were better by then."""


@dataclass(frozen=True)
class Comparison:
    """One comparison: whose parameters, on which rows, and how a network is made of other parameters."""

    task: Task
    network: Callable[[Params], Network]
    beside: Beside

    @property
    def folder(self) -> Path:
        """Where its working files lie."""
        return self.task.work / FOLDER

    @cached_property
    def _cut(self) -> tuple[Path, Path]:
        return cut(self.task.rows, self.task.params.train.compare_share, self.folder)

    @cached_property
    def newest(self) -> dict[str, list[Any]]:
        """The columns of the newest rows."""
        return read_columns(self._cut[1], self.task.fields)

    @cached_property
    def metric(self) -> str:
        """The gate's, or log-loss where that is not defined because the newest rows are of one class."""
        declared = self.task.params.gate.metric
        if declared in {"roc_auc", "pr_auc"} and len(set(self.newest[self.task.fields.label])) < 2:
            log.warning(
                "%s: the newest %d rows are of one class, so candidates are compared by log-loss instead of %s",
                self.task.params.case,
                len(self.newest["id"]),
                declared,
            )
            return "log_loss"
        return declared

    def of(
        self,
        name: str,
        params: Params,
        *,
        candidate: str = "",
        values: Mapping[str, Any] | None = None,
        report: Report | None = None,
    ) -> Compared:
        """Train one candidate and judge it, or say what an earlier try found of it.

        What is its own fault (it diverged, cannot be converted, does not take its parameters) takes it out. Raises
        what is not: a rank that was lost, a training that was asked to leave, a full disk.
        """
        kept = self.folder / f"{name}.json"
        if kept.exists():
            return Compared(**json.loads(kept.read_text()))
        about = partial(
            Compared, name, family_of(params.model), self.metric, candidate=candidate or name, values=values or {}
        )
        started = time.monotonic()
        work = self.folder / name
        try:
            value = self._value(params, work, report)
        except (Unavailable, IntegrityError, OSError):
            raise
        except Pruned as end:
            shutil.rmtree(work, ignore_errors=True)
            return about(None, _since(started), str(end), pruned=True)
        except Exception as error:  # noqa: BLE001 - whatever a library says of one candidate, the others go on
            # Not kept: the next try asks again, when a missing library may be there.
            said = str(error) if isinstance(error, PerennialError) else f"{type(error).__name__}: {error}"
            log.warning("%s: the candidate %s is out: %s", params.case, name, said)
            shutil.rmtree(work, ignore_errors=True)
            return about(None, _since(started), said)
        found = about(value, _since(started))
        write_atomic(kept, json.dumps(asdict(found)).encode())
        shutil.rmtree(work, ignore_errors=True)
        return found

    def _value(self, params: Params, work: Path, report: Report | None) -> float:
        made = work / "made"
        made.mkdir(parents=True, exist_ok=True)
        # From nothing: a champion's weights may have seen the newest rows.
        own = replace(
            self.task,
            params=params,
            network=self.network(params),
            rows=self._cut[0],
            work=work,
            warm_start=None,
            warns=False,
        )
        if report is not None and not isinstance(params.model, EstimatorParams):
            own = replace(own, watch=self._watch(own, made, report))
        # The random numbers of what is trained next do not hang on what was compared before.
        with torch.random.fork_rng(devices=[]):
            facts = candidates.train(own, made, self.beside)
            score = answers(own, made, self.newest, facts)
        return self.measured(score)

    def _watch(self, task: Task, made: Path, report: Report) -> Callable[[int, nn.Module], None]:
        """Tells of a network after each epoch."""
        device = _device(task)
        rows: list[Rows] = []

        def watch(epoch: int, model: nn.Module) -> None:
            if not rows:  # the tokenizer lies there once the training has begun
                scales = find_scales(task.fields, read_columns(task.rows, task.fields))
                rows.append(as_rows(task.fields, self.newest, scales, made / TOKENIZER))
            report(epoch, self.measured(answered(model, task.fields, rows[0], device)))

        return watch

    def measured(self, score: NDArray[np.float64]) -> float:
        """The metric of answers for the newest rows."""
        gate = self.task.params.gate
        labels = np.asarray(self.newest[self.task.fields.label])
        if not np.isfinite(score).all():
            raise TrainingDiverged("its answers for the newest rows are not finite: lower train.learning_rate")
        return measures.value(self.metric, labels, score, gate.costs, gate.quantile or 0.5)

    def better(self, found: Compared) -> float:
        """What sorts candidates, the best first: less is better."""
        if found.value is None:
            return float("inf")
        return -found.value if self.metric in MORE_IS_BETTER else found.value


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)


def cut(rows: Path, share: float, folder: Path) -> tuple[Path, Path]:
    """The training rows, which are in time order, as two files: the older ones, and the newest ``share``."""
    older, newest = folder / "older.parquet", folder / "newest.parquet"
    if older.exists() and newest.exists():
        return older, newest
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.ParquetFile(rows, pre_buffer=False).read(use_threads=False)
    count = max(1, int(table.num_rows * share))
    if table.num_rows - count < 2:
        raise DataError(
            f"{table.num_rows} row(s) to train on: too few to compare candidates; widen dataset.window_days or "
            "dataset.fallback_rows"
        )
    for path, part in ((older, table.slice(0, table.num_rows - count)), (newest, table.slice(table.num_rows - count))):
        unfinished = path.with_suffix(".part")
        pq.write_table(part, unfinished)
        os.replace(unfinished, path)
    return older, newest


def answers(
    task: Task, folder: Path, columns: Mapping[str, list[Any]], facts: Mapping[str, Any]
) -> NDArray[np.float64]:
    """What the candidate that was trained into ``folder`` answers, ``[n]`` or of classes ``[n, K]``."""
    rows = as_rows(task.fields, columns, read_scales(facts["scales"]), folder / TOKENIZER)
    if isinstance(task.params.model, EstimatorParams):
        fitted = fitting.load(folder / fitting.FILE)
        return _in_batches(lambda inputs: fitting.answers(fitted, _arrays(inputs)), rows, task.fields)
    model = task.network.build()
    load_weights(model, folder / "weights.pt")
    device = _device(task)
    return answered(model.to(device), task.fields, rows, device)


def answered(model: nn.Module, fields: Fields, rows: Rows, device: torch.device) -> NDArray[np.float64]:
    """A torch model's answers for encoded rows, ``[n]`` or of classes ``[n, K]``."""
    names = [tensor["name"] for tensor in signature(fields)[0]]
    scored = Scored(model, fields).eval()

    def ask(inputs: Mapping[str, Tensor]) -> NDArray[np.float64]:
        with torch.no_grad():
            found: NDArray[np.float64] = scored(*(inputs[name].to(device) for name in names)).double().cpu().numpy()
        return found

    return _in_batches(ask, rows, fields)


def _in_batches(
    ask: Callable[[Mapping[str, Tensor]], NDArray[np.float64]], rows: Rows, fields: Fields
) -> NDArray[np.float64]:
    # Texts of one length together need little padding.
    order = torch.arange(len(rows)) if rows.lengths is None else rows.lengths.argsort(stable=True)
    found = np.empty((len(rows), fields.outputs))
    for part in order.split(ROWS if rows.lengths is None else TEXTS):
        found[part.numpy()] = ask(rows.batch(part))
    return found if fields.classes else found[:, 0]


def _arrays(inputs: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def _device(task: Task) -> torch.device:
    return local_device("cuda" if task.params.resources.gpus else "cpu")
