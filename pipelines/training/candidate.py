"""Train a candidate: from the dataset's rows to what was learned, tokenizer and metrics in a folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.encoding import find_constant, find_scales
from pipelines.fields import Fields, Scale
from pipelines.params import EstimatorParams, Params
from pipelines.settings import Settings
from pipelines.text import TOKENIZER
from pipelines.training import estimator, metrics
from pipelines.training.dataset import as_rows, read_columns
from pipelines.training.fit import Fitted, fit
from pipelines.training.launch import Beside, Nodes
from pipelines.training.loop import Watch
from pipelines.training.rows import Rows, train_validation_split
from pipelines.training.warm_start import WarmStart
from pipelines.training.weights import fits, save_weights, weights_sha256

HEAD = "head.pt"
"""In the working folder: weights whose head was fitted before the others are trained."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """What a case's code gives to its training.

    ``build`` makes the untrained model. A text model has the file of its ``tokenizer``; ``fit_head(model, tokens,
    labels, cache)`` fits its head on the embeddings of its untouched encoder, kept in the folder ``cache``, and returns
    small facts (``loss`` among them).
    """

    build: Callable[[], nn.Module]
    fit_head: Callable[..., dict[str, Any]]
    tokenizer: Path | None = None


@dataclass(frozen=True)
class Task:
    """What is trained, and where: ``rows`` is the file of training rows, ``work`` the unfinished training's folder."""

    params: Params
    settings: Settings
    fields: Fields
    network: Network
    rows: Path
    work: Path
    warm_start: WarmStart | None = None
    watch: Watch | None = None
    """Sees every epoch of a network that one rank trains."""
    warns: bool = True
    """Whether fields of one value are named: once is enough where several candidates have the same rows."""


def train(task: Task, folder: Path, beside: Beside) -> dict[str, Any]:
    """Train, and leave what was learned, tokenizer and metrics in ``folder``; returns the facts.

    ``beside`` is what goes on around the loop itself, and the rest is as :func:`pipelines.training.fit.fit` says.
    """
    params = task.params
    if task.network.tokenizer is not None:
        shutil.copyfile(task.network.tokenizer, folder / TOKENIZER)
    # An estimator goes on from nothing.
    warm = None if isinstance(params.model, EstimatorParams) else _warm_start(task)
    columns = read_columns(task.rows, task.fields)
    # Weights of a champion go with the numbers that it was trained on.
    scales = find_scales(task.fields, columns) if warm is None else warm.scales
    rows = len(columns[task.fields.label])
    constant = find_constant(task.fields, columns)
    if constant and task.warns:
        log.warning(
            "%s: nothing can be learned from what has one value in all %d training rows: %s",
            params.case,
            rows,
            ", ".join(constant),
        )
    if isinstance(params.model, EstimatorParams):
        facts = estimator.train(params.model, params.train, task.fields, columns, scales, folder, beside)
    else:
        facts = _train_network(task, as_rows(task.fields, columns, scales, folder / TOKENIZER), warm, folder, beside)
    return {
        **facts,
        **_ends(facts["curve"]),
        "rows": rows,
        "warm_start": warm is not None,
        "scales": _as_json(scales),
        "constant": constant,
    }


def _train_network(task: Task, rows: Rows, warm: WarmStart | None, folder: Path, beside: Beside) -> dict[str, Any]:
    """Train the case's torch module and leave its weights; returns the facts."""
    if task.params.model.kind == "embedding":
        fitted = _fit_head_only(task, rows, beside)
    else:
        fitted = _fit_all(task, rows, warm, beside)
        shutil.copyfile(task.work / metrics.FILE, folder / metrics.FILE)
    save_weights(fitted.model, folder / "weights.pt")
    return {**fitted.facts, "weights_sha256": weights_sha256(fitted.model), "ranks": task.params.train.ranks}


def _warm_start(task: Task) -> WarmStart | None:
    """The champion's weights, if there are some that fit the model and learned from the same features."""
    if task.warm_start is None:
        return None
    # A champion of another family has none.
    if not task.warm_start.weights.exists() or not fits(task.network.build(), task.warm_start.weights):
        return None
    made_of = task.fields.features_hash if task.fields.derived else ""
    if task.warm_start.features_hash != made_of:
        return None
    return task.warm_start


def _fit_head_only(task: Task, rows: Rows, beside: Beside) -> Fitted:
    """Leave the encoder as it is: a training without a loop."""
    model = task.network.build()
    with beside():
        found = _fit_head(task, model, rows)
    curve = [found["loss"]]
    facts = {
        **found,
        "strategy": "head",
        "precision": "fp32",
        "stopped": "finished",
        "steps": 1,
        "epochs": 1,
        "curve": curve,
        "resumed_from": None,
    }
    return Fitted(model, curve, facts)


def _fit_all(task: Task, rows: Rows, warm: WarmStart | None, beside: Beside) -> Fitted:
    """Train by the loop, in this process or on ranks of their own."""
    settings = task.settings
    device = "cpu"
    if task.params.resources.gpus:
        device = "cuda"
    return fit(
        task.network.build,
        rows,
        task.params.train,
        task.work,
        device=device,
        initial=_first_weights(task, rows, warm),
        nodes=Nodes(settings.nodes, settings.node_rank, settings.rdzv_endpoint),
        beside=beside,
        watch=task.watch,
    )


def _first_weights(task: Task, rows: Rows, warm: WarmStart | None) -> Path | None:
    """What the training starts from: the champion's weights, a head that is fitted before, or nothing."""
    if warm is not None:
        return warm.weights
    model = task.params.model
    if model.kind != "encoder" or not model.head_start:
        return None
    head = task.work / HEAD
    _write_head_start(task, rows, head)
    return head


def _write_head_start(task: Task, rows: Rows, path: Path) -> None:
    """Write the weights of a model whose head alone was fitted."""
    model = task.network.build()
    # Rows that say when to stop must be new to the head as well.
    train_rows, _ = train_validation_split(rows, task.params.train.validation_share)
    _fit_head(task, model, train_rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(model, path)


def _fit_head(task: Task, model: nn.Module, rows: Rows) -> dict[str, Any]:
    assert rows.tokens is not None
    tokens = [ids.tolist() for ids in rows.tokens.flat.split(rows.tokens.lengths.tolist())]
    return task.network.fit_head(model, tokens, rows.labels.numpy(), task.settings.root / "cache" / "embeddings")


def _ends(curve: list[float]) -> dict[str, float | None]:
    """The first loss and the last one."""
    if not curve:
        return {"loss_first": None, "loss_last": None}
    return {"loss_first": curve[0], "loss_last": curve[-1]}


def _as_json(scales: Mapping[str, Scale]) -> dict[str, dict[str, float]]:
    return {name: asdict(scale) for name, scale in scales.items()}
