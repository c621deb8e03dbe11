"""All strategies follow one path: the same losses, resume to the same bits, one checkpoint format for those of torch.

One process trains alone; one launch per family of strategies puts two ranks through ranks.py.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.training.fit import threads
from pipelines.training.loop import CHECKPOINTS, optimise
from pipelines.training.metrics import read
from tests.pipelines.training.models import TEXT, reader, texts
from tests.pipelines.training.ranks import EVERYTHING, LEFT_AT, trials

REPOSITORY = Path(__file__).parents[3]
GOLDEN = Path(__file__).with_name("golden.json")
LAUNCHES = (["ddp", "fsdp"], ["zero3"], ["zero1", "zero2"])
LONG = ["zero1", "zero2"]
"""DeepSpeed's other stages: the third divides all that they divide, too."""
NAMES = ["ddp", "fsdp", "zero1", "zero2", "zero3"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The folder, and what one rank saw."""
    folder = tmp_path_factory.mktemp("strategies")
    with threads(1):
        return folder, trials("single", folder)


@pytest.fixture(scope="module")
def launched(alone):
    """A function from a strategy's name to what two ranks saw of it; each family is launched once."""
    folder, single = alone

    def of(name: str) -> dict:
        if name == "single":
            return single
        family = next(names for names in LAUNCHES if name in names)
        if not (folder / f"{name}.json").exists():
            command = [sys.executable, "-m", "tests.pipelines.training.ranks", str(folder), *family]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((folder / f"{name}.json").read_text())

    return of


def every(*names: str):
    """Run a test for these strategies; those with several ranks are slow, some long."""

    def marks(name: str) -> list[pytest.MarkDecorator]:
        if name == "single":
            return []
        return [pytest.mark.slow, pytest.mark.long] if name in LONG else [pytest.mark.slow]

    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in names])


@every(*NAMES)
@pytest.mark.parametrize("trial", ["plain", "all", "number", "mixed"])
def test_the_losses_are_those_of_one_rank(name, trial, alone, launched):
    """Without dropout two ranks see the losses of one within 1e-6 at every step, and its gradient norms.

    Of classes as of a number, of a text as of one beside a table.
    """
    one, two = alone[1][trial], launched(name)[trial]
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-6)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    assert two["validation"] == pytest.approx(one["validation"], abs=1e-6)
    assert len(one["losses"]) == {"plain": 10, "all": 8, "number": 16, "mixed": 8}[trial]


@every("single", *NAMES)
def test_micro_batches_and_recomputed_activations_change_no_loss(name, launched):
    """A step in two micro-batches, or with activation checkpointing, has the loss of the step that was done at once."""
    found = launched(name)
    assert found["accumulated"]["losses"] == pytest.approx(found["plain"]["losses"], abs=1e-6)
    assert found["recomputed"]["losses"] == pytest.approx(found["plain"]["losses"], abs=1e-6)


@every("single", *NAMES)
def test_resume_ends_in_the_same_bits(name, launched):
    """A training that left in the middle goes on to the same bits, with dropout, EMA, validation and micro-batches."""
    found = launched(name)
    assert found["left"] == f"training was asked to leave at step {LEFT_AT}: run it again to go on there"
    for trial in ("resumed", "again"):
        assert found[trial]["resumed_from"] == LEFT_AT
        assert {**found[trial], "resumed_from": None} == found["noisy"]


@every(*NAMES)
def test_a_checkpoint_has_the_parts_of_all_ranks(name, launched):
    """A checkpoint is published once the slowest rank has written its part, not before."""
    assert launched(name)["late"] == ["part-0", "part-1", "state.json"]


@every("ddp", "fsdp")
def test_resume_in_another_strategy(name, alone, launched):
    """What one rank saved goes on under DDP and FSDP on two, and back, within 1e-5 of its loss."""
    folder, single = alone
    found = launched(name)
    assert found["from single"]["resumed_from"] == LEFT_AT
    assert found["from single"]["losses"] == pytest.approx(single["plain"]["losses"], abs=1e-5)
    back = folder / f"{name}-to-single"
    shutil.copytree(folder / f"{name}-to-others", back)
    with threads(1):
        torch.manual_seed(TEXT.seed)
        outcome = optimise(reader(), texts(), TEXT, work=back)
    assert outcome.resumed_from == LEFT_AT
    assert [line["loss"] for line in read(back / "metrics.jsonl")] == pytest.approx(single["plain"]["losses"], abs=1e-5)


@every("single", *NAMES)
def test_divergence_names_its_step_and_rows(name, launched):
    """A loss that is not finite on one rank stops all at one step; the error names the step and the batch's rows."""
    assert launched(name)["diverged"].startswith("the loss is nan at step 0 (epoch 0; rows report-")


@every("single", *NAMES)
def test_a_spent_budget_ends_cleanly(name, launched):
    """When the minutes are used up, training ends after the step it is at, and says that it was the budget."""
    assert (launched(name)["budget"]["stopped"], launched(name)["budget"]["steps"]) == ("budget", 1)


@every("single", *NAMES)
def test_a_full_disk_costs_the_checkpoint_only(name, launched):
    """If no checkpoint can be written, training goes on to the same weights, and no part of a checkpoint is left."""
    found = launched(name)
    assert found["full"]["sha256"] == found["plain"]["sha256"]
    assert found["full"]["left behind"] == []


@every("single", "ddp", "fsdp", "zero3")
def test_bf16_learns_as_well(name, launched):
    """In bf16 the losses stay near those of fp32, and are not the same: something was computed in bf16.

    Numbers of a table are scaled before, whatever their size.
    """
    found = launched(name)
    assert found["bf16"]["losses"] == pytest.approx(found["plain"]["losses"], rel=0.02)
    assert found["bf16"]["losses"] != found["plain"]["losses"]
    assert found["mixed bf16"]["losses"] == pytest.approx(found["mixed"]["losses"], rel=0.02)


@every("single", "ddp", "fsdp")
def test_fp16_scales_its_loss(name, launched):
    """In fp16 with its loss scaling the losses and the unscaled gradient norms stay near those of fp32."""
    found = launched(name)
    assert found["fp16"]["losses"] == pytest.approx(found["plain"]["losses"], rel=0.01)
    assert found["fp16"]["norms"] == pytest.approx(found["plain"]["norms"], rel=0.02)


def test_the_golden_losses(alone):
    """The losses are those that were committed (golden.py): nobody changes the optimisation by accident."""
    golden = json.loads(GOLDEN.read_text())
    for trial in ("plain", "all"):
        assert alone[1][trial]["losses"] == pytest.approx(golden[trial], abs=1e-5), trial


def test_deepspeed_needs_no_compiler():
    """The table of operators that the strategy replaces is still what deepspeed asks before it compiles."""
    text = (
        "import sys, pipelines.training.strategies.deepspeed, deepspeed.ops as ops\n"
        "assert sys.modules['deepspeed.comm.torch'].build_shm_op() is None\n"
        "assert type(ops.__compatible_ops__).__name__ == 'defaultdict'"
    )
    subprocess.run([sys.executable, "-c", text], cwd=REPOSITORY, check=True, timeout=60, capture_output=True)


def test_metrics_have_every_step_once(tmp_path):
    """A training that left and went on has each step's line once, in order, and its validations between them."""
    params = TEXT.model_copy(update=EVERYTHING | {"checkpoint_every": 3, "keep_checkpoints": 1})
    steps = itertools.count(1)
    with threads(1):
        with pytest.raises(Exception, match="asked to leave at step 5"):
            optimise(reader(), texts(), params, work=tmp_path, preempted=lambda: next(steps) == 5)
        shutil.rmtree(tmp_path / CHECKPOINTS / "step-5")
        optimise(reader(), texts(), params, work=tmp_path)
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "validation_loss" in line] == [4, 8]
    assert set(lines[0]) == {"step", "epoch", "loss", "lr", "grad_norm", "samples", "seconds"}
