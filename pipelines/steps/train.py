"""train: fit the case's model to the training rows, in this process or on several ranks."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pipelines import ledger, storage
from pipelines.cases import build_model, load_fields, part
from pipelines.cases.code import code_sha256, modules
from pipelines.cases.pretrained import base_sha256
from pipelines.contracts import EpisodeTrigger, Manifest
from pipelines.encoding import find_constant, find_scales, read_scales
from pipelines.errors import ConfigError, NotKept, Unavailable
from pipelines.fields import Fields, Scale, encode
from pipelines.line.facts import TrainFacts
from pipelines.line.order import TRAIN
from pipelines.line.rooms import modules_of
from pipelines.line.step import Read, Run, Work
from pipelines.params import Params, TextModelParams
from pipelines.registry import live
from pipelines.settings import Settings
from pipelines.text import TOKENIZER, load_tokenizer, tokenise

if TYPE_CHECKING:
    from pipelines.training.rows import Rows

HEAD = "head.pt"
log = logging.getLogger(__name__)


def work(run: Run, read: Read) -> Work:
    """Write ``weights.pt``, ``record.json``, ``metrics.jsonl`` and (texts) ``tokenizer.json``.

    Facts say how it went; ``scales`` are the constants of the numbers that were scaled before they became float32,
    ``constant`` the fields with one value in all rows, from which nothing can be learned (a warning, too).

    Equal inputs give equal weights on a machine. A try that was interrupted goes on from its last checkpoint in
    ``run_dir/.train.k<key>``. Raises TrainingDiverged if a loss or a gradient is not finite, Unavailable if a rank
    was lost or asked to leave.
    """
    params, settings = run.params, run.settings
    fields = load_fields(params.case)
    if not settings.profile_file(params.case).exists():
        raise ConfigError(
            f"{settings.profile_file(params.case)} does not exist: run the step 'dataset' again, it is made from the "
            "training rows"
        )
    initial = champion_weights(params, settings, run.as_of)
    base = base_sha256(params.model.encoder) if isinstance(params.model, TextModelParams) else None

    def build(folder: Path, key: str) -> TrainFacts:
        asked, dataset, unfinished = governance(run), read["dataset"], work_folder(run.dir, key)
        opening = _opening(params, run.as_of, key, dataset, asked)
        # A training that is repeated elsewhere is no run of its own.
        with live.recording(settings, opening, unfinished, on=run.folder is None) as recording:
            facts = _train(folder, run, fields, initial, unfinished, recording.beside)
            # Inside: a no-op run must not pay for importing torch.
            from pipelines.training.record import training_record, write

            record = training_record(
                folder,
                params=params,
                as_of=run.as_of,
                dataset=dataset,
                source=rows_source(run.dir, dataset),
                fields_hash=fields.hash,
                modules=(*modules_of(TRAIN), *modules(params.case)),
                case_code=code_sha256(params.case),
                facts=facts,
                base_weights=base,
                champion=initial.key if initial is not None and facts["warm_start"] else None,
                governance=asked,
            )
            write(folder, record)
            page = recording.run.page if recording.run else None
            return TrainFacts(**facts, cost=recording.cost(), mlflow_page=page)

    def clear(made: Manifest) -> None:
        shutil.rmtree(work_folder(run.dir, made.key), ignore_errors=True)

    return Work(
        build,
        declared={"fields": fields.hash, "base": base},
        inputs={} if initial is None else {"champion": initial.key},
        follow=clear,
        instead=partial(_follow, run) if settings.node_rank else None,
    )


def _train(
    folder: Path,
    run: Run,
    fields: Fields,
    initial: Initial | None,
    work: Path,
    beside: Callable[[], AbstractContextManager[None]],
) -> dict[str, Any]:
    """Train, and leave weights, tokenizer and metrics in ``folder``; returns the facts."""
    # Inside: a no-op run must not pay for importing torch.
    from pipelines.training.fit import fit
    from pipelines.training.launch import Nodes
    from pipelines.training.metrics import FILE
    from pipelines.training.rows import train_validation_split
    from pipelines.training.weights import fits, save_weights, weights_sha256

    params, settings = run.params, run.settings
    if isinstance(params.model, TextModelParams):
        shutil.copyfile(part(params.case, "model").tokenizer(params.model), folder / TOKENIZER)

    def made() -> Any:
        return build_model(params.case, params.model, fields)

    warm = initial if initial is not None and fits(made(), initial.weights) else None
    columns = read_columns(run.dir / "dataset" / "train.parquet", fields)
    # Weights of a champion go with the numbers that it was trained on.
    scales = warm.scales if warm else find_scales(fields, columns)
    rows = as_rows(fields, columns, folder, scales)
    constant = find_constant(fields, columns)
    if constant:
        log.warning(
            "%s: nothing can be learned from what has one value in all %d training rows: %s",
            params.case,
            len(rows),
            ", ".join(constant),
        )
    cache = settings.root / "cache" / "embeddings"
    if params.model.kind == "embedding":
        model = made()
        with beside():
            fitted_head = fit_head(model, rows, params, cache)
        curve = [fitted_head["loss"]]
        facts = {
            **fitted_head,
            "strategy": "head",
            "precision": "fp32",
            "stopped": "finished",
            "steps": 1,
            "epochs": 1,
            "curve": curve,
            "resumed_from": None,
        }
    else:
        if warm is None and params.model.kind == "encoder" and params.model.head_start:
            model = made()
            # Rows that say when to stop must be new to the head as well.
            train_rows, _ = train_validation_split(rows, params.train.validation_share)
            fit_head(model, train_rows, params, cache)
            work.mkdir(parents=True, exist_ok=True)
            save_weights(model, work / HEAD)
        nodes = Nodes(settings.nodes, settings.node_rank, settings.rdzv_endpoint)
        fitted = fit(
            made,
            rows,
            params.train,
            work,
            device="cuda" if params.resources.gpus else "cpu",
            initial=_first_weights(warm, work),
            nodes=nodes,
            beside=beside,
        )
        model, curve, facts = fitted.model, fitted.curve, fitted.facts
        shutil.copyfile(work / FILE, folder / FILE)
    save_weights(model, folder / "weights.pt")
    return {
        **facts,
        "loss_first": curve[0] if curve else None,
        "loss_last": curve[-1] if curve else None,
        "weights_sha256": weights_sha256(model),
        "ranks": params.train.ranks,
        "rows": len(rows),
        "warm_start": warm is not None,
        "scales": {name: asdict(scale) for name, scale in scales.items()},
        "constant": constant,
    }


def _first_weights(warm: Initial | None, work: Path) -> Path | None:
    """What the training starts from: the champion's weights, a head that was fitted before, or nothing."""
    if warm is not None:
        return warm.weights
    head = work / HEAD
    return head if head.exists() else None


def _opening(params: Params, as_of: datetime, key: str, dataset: Manifest, asked: Mapping[str, Any]) -> live.Training:
    """What MLflow is told before the training starts."""
    origin = storage.provenance()
    tags = {"case": params.case, "dataset": dataset.key, "commit": origin["commit"], "lock": origin["lock"], **asked}
    return live.Training(
        case=params.case,
        as_of=as_of,
        key=key,
        params={name: str(value) for name, value in live.flat(params.model_dump(mode="json")).items()},
        tags={
            **{f"perennial.{name}": str(value) for name, value in tags.items() if value},
            "perennial.dirty": "unknown" if origin["dirty"] is None else str(origin["dirty"]),
            "mlflow.user": str(asked["actor"]),
            "mlflow.source.name": "perennial train",
            **({"mlflow.source.git.commit": origin["commit"]} if origin["commit"] else {}),
        },
        gpus=params.resources.gpus,
        price_per_hour=params.resources.price_per_hour,
    )


def rows_source(run_dir: Path, dataset: Manifest) -> Mapping[str, Any]:
    """Where the dataset's rows came from at first (name, kind, sha256, notice), as its run's ingest says.

    Empty if that is not there.
    """
    # Beside the dataset itself: a training that is repeated elsewhere links to it.
    run = (run_dir / "dataset").resolve().parent
    try:
        validate = storage.read_manifest(
            storage.find(run / "validate", dataset.inputs["validate"], verify=False), verify=False
        )
        found: Mapping[str, Any] = storage.read_manifest(
            storage.find(run / "ingest", validate.inputs["ingest"], verify=False), verify=False
        ).facts["source"]
    except (KeyError, NotKept):
        return {}
    return found


def governance(run: Run) -> dict[str, Any]:
    """Who asked for a training and why: ``{actor, trigger, reason, episode}``.

    The episode is the one that asked for it.
    """
    asked_for = run.trigger in get_args(EpisodeTrigger)
    episode = ledger.asking_episode(run.settings.ledger, run.case, run.as_of) if asked_for else None
    why = f"{run.trigger} episode {episode}" if episode else run.trigger
    return {
        "actor": run.actor or run.settings.who,
        "trigger": run.trigger,
        "reason": run.reason or why,
        "episode": episode,
    }


def _follow(run: Run, key: str) -> Manifest:
    """The part of a node other than the first: its ranks, and then the first node's manifest."""
    from pipelines.training.launch import JOIN_SECONDS, follow

    folder = run.dir / "train"
    if not _committed(folder, key):
        follow(work_folder(run.dir, key), run.settings.node_rank)
    give_up = time.monotonic() + JOIN_SECONDS
    while not _committed(folder, key):
        if time.monotonic() > give_up:
            raise Unavailable(
                f"node 0 has not committed {folder} within {JOIN_SECONDS:.0f} s: look at its log, run the step again"
            )
        time.sleep(0.1)
    return storage.read_manifest(folder)


def _committed(folder: Path, key: str) -> bool:
    return (folder / storage.MANIFEST).exists() and storage.read_manifest(folder, verify=False).key == key


def fit_head(model: Any, rows: Rows, params: Params, cache: Path) -> dict[str, Any]:
    """Fit the head of a text model on the embeddings of its untouched encoder; returns small facts."""
    assert rows.tokens is not None
    tokens = [ids.tolist() for ids in rows.tokens.flat.split(rows.tokens.lengths.tolist())]
    facts: dict[str, Any] = part(params.case, "model").fit_head(model, tokens, rows.labels.numpy(), params.train, cache)
    return facts


def work_folder(run_dir: Path, key: str) -> Path:
    """Where an unfinished training keeps its job, checkpoints and metrics: the same for every try of one key."""
    # The letter keeps it apart from a commit's own folders, which name a process id there.
    return run_dir / f".train.k{key[:16]}"


def read_columns(path: Path, fields: Fields) -> dict[str, list[Any]]:
    """The columns of the training rows in the file's order: ``id``, the fields and the label."""
    # Not polars: its threads would stay in this process, and one that has threads may not fork its ranks.
    import pyarrow.parquet as pq

    table = pq.ParquetFile(path, pre_buffer=False).read(["id", *fields.names, fields.label], use_threads=False)
    return {name: table[name].to_pylist() for name in table.column_names}


def as_rows(fields: Fields, columns: Mapping[str, list[Any]], folder: Path, scales: Mapping[str, Scale]) -> Rows:
    """The training rows, encoded as everywhere: numbers by ``scales``, texts by ``folder``'s tokenizer."""
    import numpy as np

    from pipelines.training import rows

    labels, classes = np.asarray(columns[fields.label]), len(fields.classes)
    if fields.text is None:
        return rows.as_rows(encode(fields, columns, scales), labels, columns["id"], classes=classes)
    tokens = tokenise(load_tokenizer(folder / TOKENIZER), columns[fields.text.name])
    return rows.as_rows({}, labels, columns["id"], tokens=tokens, classes=classes)


class Initial(NamedTuple):
    """What a warm start goes on from.

    The key of the champion's training, its weights file, and how it scaled its numbers.
    """

    key: str
    weights: Path
    scales: dict[str, Scale]


def champion_weights(params: Params, settings: Settings, as_of: datetime) -> Initial | None:
    """The champion's training, for a warm start; None if none is asked for or there is no champion."""
    champion = ledger.champion_before(settings.ledger, params.case, as_of) if params.train.warm_start else None
    if champion is None:
        return None
    bundle = settings.root / champion.bundle
    key = storage.read_manifest(storage.find(bundle, champion.candidate_key)).inputs["train"]
    folder = storage.find(bundle.parent / "train", key)
    return Initial(key, folder / "weights.pt", read_scales(storage.read_manifest(folder).facts.get("scales", {})))
