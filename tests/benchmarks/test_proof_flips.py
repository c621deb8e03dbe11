"""The proof of the flips in small, as a process of its own: each of its trials is a fork."""

import json
import subprocess
import sys

import pytest

from benchmarks.proof import flips as proof

SCRIPT = """
import json, pathlib, sys
from benchmarks.proof import flips as proof
proof.SERVED = 1
proof.preload()
kinds = [kind for kind in proof.KINDS if kind.name in sys.argv[2:]]
print(json.dumps(proof.flipped(pathlib.Path(sys.argv[1]), 2 * len(kinds), kinds, jobs=2)))
"""


@pytest.mark.long
def test_flips_are_found_and_none_is_no_difference(tmp_path):
    """Steps of a real small line give the same output without a flip.

    A flipped bit of what they read or wrote never gives another one.
    """
    kinds = ["ledger, drift_states", "evaluate/scores.parquet"]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), *kinds], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    trials = [
        proof.Trial(kind, file, bit, tuple(proof.Answer(*one) for one in told))
        for kind, file, bit, told in json.loads(ended.stdout)
    ]
    assert {trial.kind for trial in trials} == {"nothing", *kinds}
    assert all(trial.answer == "harmless" for trial in trials if trial.bit is None)
    assert all(trial.answer in {"found", "harmless"} for trial in trials), trials
    assert all(trial.answer == "found" for trial in trials if trial.kind == kinds[1]), trials


def test_a_trial_counts_as_its_worst_answer():
    """One step with another result outweighs all that found the flip, and a goal says so."""
    answers = [
        proof.Answer("gate 2", "no-op", "found"),
        proof.Answer("gate 2", "again", "another result"),
        proof.Answer("alert 2", "again", "harmless"),
    ]
    trial = proof.Trial("evaluate/scores.parquet", "file", 1, tuple(answers))
    assert trial.answer == "another result"
    assert [one["holds"] for one in proof.goals([trial], [])] == [False, True, True, True]
    [row] = proof.table([trial])
    assert (row["flips"], row["another result"], row["found"]) == (1, 1, 0)
