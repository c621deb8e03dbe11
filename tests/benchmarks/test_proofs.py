"""What the proofs of equality and of faults look with, and what they do to a training."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest

from benchmarks import interrupt, job
from benchmarks.proof import equality as proof_equality
from benchmarks.proof import faults as proof_faults
from benchmarks.proof import reproduce as proof_reproduce
from pipelines.errors import PerennialError
from pipelines.training import checkpoint

SLEEPER = "import sys, time; file = open(sys.argv[1] + '/held'); print('ready', flush=True); time.sleep(60)"


def test_a_process_is_found_by_its_folder_alone(tmp_path):
    """A process that has a file of the folder open is found, one of a folder whose name begins alike is not.

    Then it is gone.
    """
    folder = tmp_path / "fault-1"
    alike = tmp_path / "fault-10"
    sleepers = []
    for place in (folder, alike):
        place.mkdir()
        (place / "held").touch()
        sleepers.append(subprocess.Popen([sys.executable, "-c", SLEEPER, str(place)], stdout=subprocess.PIPE))
        sleepers[-1].stdout.readline()
    try:
        assert job.holders(folder) == [sleepers[0].pid]
        assert job.peak_memory(sleepers[0].pid) > 1
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    assert interrupt.ended(folder)


def test_a_corrupt_checkpoint_differs_in_one_byte(tmp_path):
    """The byte that is changed is one that the training's own check sees."""
    checkpoint.publish(tmp_path, 5, lambda path: (path / "weights").write_bytes(b"abcdefgh" * 99) and None, {}, keep=2)
    assert interrupt.steps_in(tmp_path) == [5]
    assert checkpoint.damage(tmp_path / "step-5") is None
    interrupt.corrupt(tmp_path / "step-5")
    assert checkpoint.damage(tmp_path / "step-5") == "the bytes of weights have changed"


def test_a_limit_stands_for_a_full_disk(tmp_path):
    """A process that is limited from outside cannot write beyond the limit, and lives on to say so."""
    code = (
        "import sys; sys.stdin.readline()\ntry: open(sys.argv[1], 'wb').write(b'x' * 9999)\nexcept OSError as "
        "error: print(error.strerror)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    interrupt.limit([process.pid], 4096)
    assert process.communicate("go\n")[0] == "File too large\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_a_fault_that_never_comes_is_an_error():
    """A training that ends before the awaited moment is named, instead of a proof that shows nothing."""
    with pytest.raises(PerennialError, match="the checkpoint did not come: the training ended before"):
        interrupt.wait_for(lambda: False, lambda: True, "the checkpoint")


def test_a_training_that_ended_before_its_fault_proves_nothing(tmp_path):
    """An answer without an error means that the fault came too late, and is refused.

    A missing one is a killed task's.
    """
    assert proof_faults.said(tmp_path) == "nothing: the task was killed"
    (tmp_path / job.ANSWER).write_text(json.dumps({"sha256": "0"}))
    with pytest.raises(PerennialError, match="ended before the fault"):
        proof_faults.said(tmp_path)


def test_losses_are_compared_step_by_step():
    """The difference is the largest one of any step; trainings of unequal length cannot be compared."""
    assert proof_equality.difference([1.0, 0.5, 0.25], [1.0, 0.5, 0.25 + 2**-20]) == 2**-20
    with pytest.raises(PerennialError, match="2 steps against 3"):
        proof_equality.difference([1.0, 0.5], [1.0, 0.5, 0.25])


@pytest.mark.long
def test_one_fault_from_end_to_end(tmp_path):
    """A single training on a full disk that is then killed ends in the bits of the undisturbed one."""
    from benchmarks.reports import rows

    rows(proof_faults.ROWS, proof_faults.NETWORK)[0].save(tmp_path / "rows.pt")
    params = proof_faults.PARAMS
    whole = job.train(tmp_path / "whole", proof_faults.NETWORK, proof_faults.DROPOUT, tmp_path / "rows.pt", params)
    found = proof_faults.trial(tmp_path / "full", proof_faults.FULL, tmp_path / "rows.pt", params, whole["sha256"])
    assert (found["same"], found["left"]) == (True, 0)
    assert found["resumed_from"] >= proof_faults.FIRST
    assert "not written" in found["told"]


def test_a_reproduction_asks_for_nothing_that_its_stack_lacks(tmp_path):
    """Its commands run with MLflow alone: a step of the loans line works in the proof's environment."""
    own = proof_reproduce.environment(tmp_path, "http://127.0.0.1:9")
    made = proof_reproduce.command(own, "ingest", "--case", "loans", "--as-of", proof_reproduce.AS_OF["loans"])
    assert made["step"] == "ingest"
    assert (tmp_path / "artefacts" / "loans").is_dir()
