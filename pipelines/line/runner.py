"""The one way to run a step: read what it reads, make its key, publish its folder once, and do what follows."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from pipelines import objects, storage
from pipelines.cases import code, kept_target
from pipelines.contracts import Manifest
from pipelines.line.step import Action, Read, Run, Step, Work
from pipelines.params import Params
from pipelines.segments import COMPACTED, RECORDS
from pipelines.settings import Settings


def run(step: Step, run: Run) -> Manifest:
    """Run a step, or find that it has run: equal inputs, parameters and code are a no-op.

    Raises what the step raises.
    """
    objects.attach(run.settings)
    for kind in COMPACTED:  # what is known of the log, wherever it was compacted
        objects.need_folder(run.settings.lake_dir / run.case / kind / RECORDS)
    kept_target.hold(run.params, run.settings, again=run.folder is not None)
    read = reads(step, run)
    return publish(step, run, read, home(step).work(run, read))


def act(action: Action, params: Params, settings: Settings, given: Mapping[str, Any]) -> Any:
    """Carry out an action with those of the ``given`` arguments that it declares; its answer."""
    objects.attach(settings)
    names = (*action.needs, *action.takes, *action.told)
    return home(action).run(params, settings, **{name: given[name] for name in names if name in given})


def home(step: Step | Action) -> ModuleType:
    """The step's own file."""
    return import_module(f"pipelines.steps.{step.name}")


def reads(step: Step, run: Run) -> Read:
    """The manifests that a step reads, the files that it opens checked.

    Raises ConfigError if a step has not run yet.
    """
    names = [made.name for made in (*step.reads, *step.looks_at)]
    for name in names:
        objects.refresh(run.dir / name)
    return {name: storage.read_manifest(run.dir / name, verify=step.files.get(name, True)) for name in names}


def declared(step: Step, params: Params, work: Work) -> dict[str, Any]:
    """What enters the key of a step beside its name, its version and its inputs' keys."""
    found = {"params": {name: _value(params, name) for name in step.params}, **work.declared}
    if step.runs_case and work.runs_case:
        found["code"] = code.code_sha256(params.case)
    return found


def _value(params: Params, name: str) -> Any:
    value: Any = params
    for part in name.split("."):
        value = getattr(value, part)
    return value


def key(step: Step, run: Run, read: Read, work: Work) -> str:
    """The identity of a step's work for one run."""
    return storage.step_key(step.name, step.version, _inputs(step, read, work), declared(step, run.params, work))


def _inputs(step: Step, read: Read, work: Work) -> dict[str, str]:
    return {**{made.name: read[made.name].key for made in step.reads}, **work.inputs}


def publish(step: Step, run: Run, read: Read, work: Work) -> Manifest:
    """Leave the work's folder in the run, once, and do what follows."""
    made_of = key(step, run, read, work)
    if work.instead is not None:
        return work.instead(made_of)
    manifest = storage.commit(
        run.dir / step.name,
        case=run.case,
        as_of=run.as_of,
        key=made_of,
        inputs=_inputs(step, read, work),
        build=lambda folder: work.build(folder, made_of).kept(),
    )
    told = None if work.follow is None else work.follow(manifest)
    return manifest if not told else manifest.model_copy(update={"facts": {**manifest.facts, **told}})
