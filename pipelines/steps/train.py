"""train: fit the case's model to the training rows, in this process or on several ranks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cases import build_model, load_fields, part
from pipelines.cases.code import code_sha256, modules
from pipelines.cases.pretrained import base_sha256
from pipelines.contracts import Manifest
from pipelines.errors import ConfigError
from pipelines.fields import Fields
from pipelines.line.facts import TrainFacts
from pipelines.line.order import TRAIN
from pipelines.line.rooms import modules_of
from pipelines.line.step import Read, Run, Work
from pipelines.params import AnyModel, EncoderParams, Params
from pipelines.registry import live
from pipelines.registry.opening import opening
from pipelines.training.origin import governance, rows_source
from pipelines.training.warm_start import warm_start

if TYPE_CHECKING:
    from pipelines.training.candidate import Network, Task
    from pipelines.training.compare import Compared


def work(run: Run, read: Read) -> Work:
    """Write ``weights.pt`` (or ``estimator.pkl``), ``record.json``, ``metrics.jsonl`` and (texts) ``tokenizer.json``.

    Facts say how it went; ``scales`` are the constants of the numbers that were scaled before they became float32,
    ``constant`` the fields with one value in all rows, from which nothing can be learned (a warning, too). Of several
    ``models`` and of trials (``train.search``, ``trials.json``) the best on the newest rows is trained: ``candidates``
    and ``chosen``.

    Equal inputs give equal weights on a machine. A try that was interrupted goes on from its last checkpoint in
    ``run_dir/.train.k<key>``. Raises TrainingDiverged if a loss or a gradient is not finite or no candidate is left,
    Unavailable if a rank was lost or asked to leave.
    """
    params, settings, dataset = run.params, run.settings, read["dataset"]
    fields = load_fields(params.case)
    if not (profile := settings.profile_file(params.case)).exists():
        raise ConfigError(f"{profile} does not exist: run the step 'dataset' again, it is made from the training rows")
    if params.compares and settings.nodes > 1:
        raise ConfigError(
            f"{params.case}: models and trials are compared on one node, PERENNIAL_NODES is {settings.nodes}: "
            "declare the one model that is trained on several"
        )
    start = warm_start(params, settings, run.as_of)
    inputs = {}
    if start is not None:
        inputs["champion"] = start.key
    base = _base(params.model)

    def build(folder: Path, key: str) -> TrainFacts:
        unfinished = _unfinished(run, key)
        asked = governance(settings, run.case, run.as_of, trigger=run.trigger, actor=run.actor, reason=run.reason)
        told = opening(params, run.as_of, key, dataset.key, asked)
        # A training that is repeated elsewhere is no run of its own.
        with live.recording(settings, told, unfinished, on=run.folder is None) as recording:
            # Inside: a no-op run must not pay for importing torch.
            from pipelines.training import candidate, record

            rows = run.dir / "dataset" / "train.parquet"
            task = candidate.Task(params, settings, fields, _network(params, fields), rows, unfinished, start)
            chosen: dict[str, Any] = {}
            if params.compares:
                task, chosen = _choose(task, folder, recording)
            facts = candidate.train(task, folder, recording.beside)
            whole = record.training_record(
                folder,
                params=task.params,
                as_of=run.as_of,
                dataset=dataset,
                source=rows_source(run.dir, dataset),
                fields_hash=fields.features_hash,
                modules=(*modules_of(TRAIN), *modules(params.case)),
                case_code=code_sha256(params.case),
                facts=facts,
                base_weights=_base(task.params.model),
                champion=inputs.get("champion") if facts["warm_start"] else None,
                governance=asked,
                choice=_choice(params, chosen),
            )
            record.write(folder, whole)
            return TrainFacts(**facts, **chosen, cost=recording.cost(), mlflow_page=recording.page)

    def clear(made: Manifest) -> None:
        shutil.rmtree(_unfinished(run, made.key), ignore_errors=True)

    return Work(
        build,
        declared={"fields": fields.features_hash, "base": base, **_competing(params)},
        inputs=inputs,
        follow=clear,
        instead=partial(_follow, run) if settings.node_rank else None,
    )


def _unfinished(run: Run, key: str) -> Path:
    """Where an unfinished training keeps its job, checkpoints and metrics: the same for every try of one key."""
    # The letter keeps it apart from a commit's own folders, which name a process id there.
    return run.dir / f".train.k{key[:16]}"


def _network(params: Params, fields: Fields) -> Network:
    """What the case's code gives to its training; its model's other functions are looked for when they are called."""
    from pipelines.training.candidate import Network

    def fit_head(model: Any, tokens: Any, labels: Any, cache: Path) -> dict[str, Any]:
        facts: dict[str, Any] = part(params.case, "model").fit_head(model, tokens, labels, params.train, cache)
        return facts

    tokenizer = None
    if isinstance(params.model, EncoderParams):
        tokenizer = part(params.case, "model").tokenizer(params.model)
    return Network(partial(build_model, params.case, params.model, fields), fit_head, tokenizer)


def _choose(task: Task, folder: Path, recording: live.Recording) -> tuple[Task, dict[str, Any]]:
    """The task of what was chosen among several candidates, and what the facts say of the choice.

    All trials are written to ``folder``.
    """
    from pipelines.training import choice

    def network(params: Params) -> Network:
        return _network(params, task.fields)

    def tell(compared: Sequence[Compared]) -> None:
        recording.tell(live.child_of(asdict(one)) for one in compared)

    found = choice.choose(task, network, recording.beside, tell)
    found.write(folder)
    return choice.of_choice(task, found, network), found.facts


def _competing(params: Params) -> dict[str, Any]:
    """What the key holds of families that compete; nothing of one family, whose key is what it was."""
    if not params.models:
        return {}
    return {"models": params.models, "bases": {name: _base(model) for name, model in params.models.items()}}


def _choice(params: Params, chosen: dict[str, Any]) -> dict[str, Any] | None:
    """What the record says of a choice: among what, on what share of the rows, and how it came out."""
    if not chosen:
        return None
    models = {name: model.model_dump(mode="json") for name, model in params.candidates.items()}
    search = params.train.search and params.train.search.model_dump(mode="json")
    return {"models": models, "compare_share": params.train.compare_share, "search": search, **chosen}


def _base(model: AnyModel) -> str | None:
    """The sha256 of what a pre-trained encoder starts from."""
    return base_sha256(model.encoder) if isinstance(model, EncoderParams) else None


def _follow(run: Run, key: str) -> Manifest:
    """The part of a node other than the first."""
    from pipelines.training.launch import follow

    return follow(_unfinished(run, key), run.settings.node_rank, run.dir / "train", key)
