"""A step whose code changed gets a new version: its old artefacts would otherwise pass for new ones."""

import copy
import json

import pytest

from pipelines import imports, storage
from pipelines.line.order import ALL, DRIFT, EXPORT, GATE, STEPS, TRAIN
from pipelines.line.rooms import rooms, runs_case
from pipelines.line.runner import declared, home
from pipelines.line.step import Work
from pipelines.params import Batching, ServingParams, Slo
from pipelines.params_file import load_params
from tests.pipelines.steps import versions

KEPT = json.loads(versions.KEPT.read_text())
NOW = versions.found()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_changed_steps_have_a_new_version(step):
    """The source of all that a step can reach is the one that its version stands for."""
    assert step.name in KEPT["steps"], f"{step.name} is a new step: run `make step-versions` and commit versions.json"
    was = KEPT["steps"][step.name]["version"]
    if was == step.version:
        assert versions.changed(step, KEPT, NOW) == [], (
            f"what {step.name} can reach changed under version {was}: raise it in pipelines/line/order.py if the step "
            "now "
            "does something else, then (or if it does the same) run `make step-versions`"
        )
    assert was == step.version, f"the version of {step.name} is new: run `make step-versions` and commit versions.json"


def test_no_step_is_forgotten():
    """versions.json names the steps there are, and no others."""
    assert list(KEPT["steps"]) == [step.name for step in STEPS]


def test_every_file_of_the_steps_is_declared():
    """Each file in pipelines/steps is a step or an action of the line, and has the function that the line calls."""
    files = {path.stem for path in (imports.ROOT / "pipelines" / "steps").glob("*.py")} - {"__init__"}
    assert files == {step.name for step in ALL}
    assert all(callable(getattr(home(step), "work" if step in STEPS else "run")) for step in ALL)


def test_how_a_case_is_served_is_in_no_key():
    """Other ``serving:`` parameters leave what every step declares as it is: nothing is trained or judged anew."""
    params = load_params("bank")
    serving = ServingParams(
        device="gpu", instances=2, batching=Batching(window_ms=5), deadline_seconds=1, slo=Slo(p99_ms=20), default=0.1
    )
    other = params.model_copy(update={"serving": serving})
    assert other.serving != params.serving
    work = Work(lambda _folder, _key: None)
    for step in STEPS:
        assert storage.canonical_json(declared(step, params, work)) == storage.canonical_json(
            declared(step, other, work)
        )


def test_wording_does_not_count():
    """Comments, docstrings and layout leave a fingerprint as it is; code changes it."""
    one = '"""A."""\ndef run():\n    """B."""\n    return 1\n'
    same = '"""C."""\n\n\ndef run():\n    # D\n    return (1)\n'
    assert versions.normal(one) == versions.normal(same)
    assert versions.normal(one) != versions.normal(same.replace("(1)", "2"))


def test_a_module_that_a_step_reaches_counts():
    """A changed statistic of drift is a change of the steps that can reach it, by whatever way, and of no other."""
    other = copy.deepcopy(NOW)
    other["modules"]["pipelines.drift.stats"] = "another"
    hit = [step.name for step in STEPS if versions.changed(step, NOW, other)]
    assert {EXPORT.name, DRIFT.name} <= set(hit)
    assert GATE.name not in hit


def test_what_is_loaded_by_name_is_reached():
    """The training's strategies, which are imported by their names, are part of what the train step can reach."""
    assert {f"pipelines.training.strategies.{name}" for name in ("single_ddp", "fsdp", "deepspeed")} <= set(
        rooms(TRAIN)
    )


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_steps_that_run_a_cases_code_hold_it_in_their_keys(step):
    """A step that loads a part of a case's code, itself or in a room, has it in its key; no other does."""
    assert step.runs_case is runs_case(step)
