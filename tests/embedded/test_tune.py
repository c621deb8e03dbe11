"""`perennial tune`: what follows from what it measures, what it writes, and that it measures on a Triton of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from embedded.ports import Ports
from embedded.processes import alive
from embedded.tune import __main__ as tune
from embedded.tune import grid, written
from pipelines import ledger
from pipelines.case_files import CASES_ROOT
from pipelines.cases import load_fields
from pipelines.contracts import Order
from pipelines.errors import ConfigError
from pipelines.params import Batching, Cache, Queue, ServingParams, Slo
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.candidates import CASE, candidate, month

PLAIN = ServingParams(device="cpu")
WAYS = grid.tried(PLAIN)


EVEN = [(1.0, 1.0, 1.0) for _ in WAYS]


def came_to(rates, alone=EVEN, p95=4.0, p99=8.0):
    """What would have been measured: requests/s at 32 clients, and ms of one, for each way a value a round."""
    return [
        grid.Tried(
            serving,
            {
                1: [grid.Point(1000 / ms, ms, ms, ms) for ms in mine],
                32: [grid.Point(rate, 1.0, p95, p99) for rate in its],
            },
        )
        for serving, its, mine in zip(WAYS, rates, alone, strict=True)
    ]


def rates(**factors):
    """The rates of all ways, in three rounds of an uneven machine, with ``w<number>=factor`` of the simplest's."""
    rounds = (1000.0, 1500.0, 800.0)
    return [tuple(rate * factors.get(f"w{number}", 1.0) for rate in rounds) for number in range(len(WAYS))]


def test_the_grid_begins_with_the_simplest():
    """One instance without batching comes first; everything else of the case stays as it is declared."""
    assert WAYS[0] == PLAIN
    declared = ServingParams(device="gpu", default=0.1, cache=Cache(seconds=1))
    assert {(way.device, way.default, way.cache) for way in grid.tried(declared)} == {("gpu", 0.1, declared.cache)}
    assert len({grid.name(way) for way in WAYS}) == len(WAYS) == 10
    queued = grid.tried(ServingParams(batching=Batching(window_ms=9, queue=Queue(size=7))))
    assert {way.batching and way.batching.queue for way in queued} == {None, Queue(size=7)}


def test_differences_within_the_noise_are_ties_and_the_simplest_is_chosen():
    """Where nothing is faster by more than rounds differ, the simplest way is chosen, whatever the medians say."""
    judgement = grid.judge(came_to(rates(w1=1.04, w6=1.03)))
    assert judgement.chosen.serving == PLAIN
    assert [one.said for one in judgement.all] == ["the simplest", *["a tie"] * 9]
    uneven = [(1000.0, 1500.0, 800.0), *[(1400.0, 1400.0, 1100.0)] * 9]
    judgement = grid.judge(came_to(uneven))
    assert judgement.noise == pytest.approx(0.5, abs=0.01)
    assert judgement.chosen.serving == PLAIN


def test_of_what_is_as_fast_the_simplest_is_chosen():
    """A way that is faster in every round is chosen; of two that are as fast, the one with less in it."""
    judgement = grid.judge(came_to(rates(w1=1.6, w3=1.63, w6=1.61, w5=1.2)))
    assert judgement.chosen.serving == PLAIN.model_copy(update={"batching": Batching()})
    assert [judgement.all[number].said for number in (1, 3, 5, 6)] == ["faster"] * 4
    judgement = grid.judge(came_to(rates(w1=1.2, w5=1.6)))
    assert judgement.chosen.serving == PLAIN.model_copy(update={"instances": 2})


def test_what_one_client_pays_for_is_not_chosen():
    """A window that makes one client wait is not chosen, however much faster many are; a slower way is told."""
    alone = [(1.0, 1.0, 1.0) for _ in WAYS]
    alone[4] = (6.0, 6.1, 6.2)
    judgement = grid.judge(came_to(rates(w4=1.9, w7=0.5), alone))
    assert judgement.all[4].said == "faster, but slower for one client"
    assert judgement.all[7].said == "slower"
    assert judgement.chosen.serving == PLAIN


def test_the_proposal_promises_more_than_was_measured():
    """SLO and deadline come from the measured p95 and p99, with a margin and rounded up; all else stays."""
    declared = ServingParams(device="gpu", default=0.2, slo=Slo(errors=0.05), batching=Batching(window_ms=9))
    [chosen] = came_to(rates(), p95=20.3, p99=61.0)[1:2]
    found = grid.proposed(chosen, declared)
    assert found.slo == Slo(p95_ms=71, p99_ms=200, errors=0.05)
    assert found.deadline_seconds == 1.3
    assert (found.device, found.default, found.batching) == ("gpu", 0.2, Batching())
    assert grid.proposed(came_to(rates())[0], declared).deadline_seconds == 1.0
    assert ServingParams.model_validate(found.model_dump()) == found


BLOCK = {"instances": 2, "batching": {"window_ms": 2.0, "preferred_rows": [8, 32]}, "slo": {"p99_ms": 40.0}}
TEXTS = {
    "as a block": (
        "serving:  # how\n  device: cpu  # small\n  # two\n  instances: 4\n  slo:\n    p99_ms: 4\n\n# gate\ngate: 1\n",
        "serving:  # how\n  device: cpu  # small\n  # two\n  instances: 2\n",
    ),
    "on one line": ("serving: {device: gpu, instances: 4}  # why\ngate: 1\n", "serving:  # why\n  device: gpu\n"),
    "empty": ("serving:\ngate: 1\n", "serving:\n"),
    "missing": ("gate: 1\n", "gate: 1\n\nserving:\n"),
}


@pytest.mark.parametrize("form", TEXTS)
def test_the_block_is_written_in_its_place(form):
    """Tuned keys are replaced where the block stands; other keys, comments and the rest of the file stay."""
    text, begins = TEXTS[form]
    found = written.rewritten(text, BLOCK)
    kept = yaml.safe_load(text)
    serving = {name: value for name, value in (kept.get("serving") or {}).items() if name not in written.TUNED}
    assert yaml.safe_load(found) == kept | {"serving": serving | BLOCK}
    assert re.findall("#.*", found) == re.findall("#.*", text)
    assert found.startswith(begins)
    assert written.rewritten(found, BLOCK) == found


@pytest.mark.parametrize("case", ["bank", "loans", "triage"])
def test_every_comment_of_a_real_case_stays(case, tmp_path):
    """The file of a case has the proposal afterwards, and every line that is not about it as before."""
    path = tmp_path / f"{case}.yaml"
    text = (CASES_ROOT / case / "params.yaml").read_text()
    path.write_text(text)
    params = load_params(case, path)
    serving = params.serving.model_copy(
        update={"instances": 2, "batching": Batching(window_ms=2), "deadline_seconds": 1.5, "slo": Slo(p99_ms=40)}
    )
    written.write(path, params, serving, grid.block(serving))
    assert load_params(case, path).serving == serving
    assert [line for line in text.splitlines() if line not in path.read_text().splitlines()] == []


def test_a_file_that_would_say_something_else_is_left_alone(tmp_path):
    """A block that is not the proposal, and a file that cannot be written, are errors; the file is as it was."""
    path = tmp_path / "bank.yaml"
    text = (CASES_ROOT / "bank" / "params.yaml").read_text()
    path.write_text(text)
    params = load_params("bank", path)
    with pytest.raises(ConfigError, match="by hand"):
        written.write(path, params, params.serving, {"instances": 3})
    assert path.read_text() == text
    with pytest.raises(ConfigError, match="cannot be written"):
        written.write(tmp_path / "none" / "bank.yaml", params, params.serving, {})


def test_what_keeps_it_from_measuring_is_told(tmp_path, monkeypatch, capsys):
    """An unknown case, one without a champion, and impossible options are said in one line; nothing is started."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setattr(tune.triton, "bring", lambda _say: pytest.fail("it went on"))
    assert tune.main(["--case", "bnak"]) == 2
    assert "did you mean 'bank'" in capsys.readouterr().err
    assert tune.main(["--case", CASE]) == 2
    assert "bank has no champion yet: run its training (DAG bank_training) first" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.main(["--case", CASE, "--seconds", "0"])
    assert "--seconds 0 is not above 0" in capsys.readouterr().err


@pytest.fixture
def champion(tmp_path, monkeypatch):
    """Settings of a state folder whose ledger has a champion of bank, as a rollout leaves it; no Triton runs."""
    settings = Settings(home=tmp_path / "home")
    monkeypatch.setenv("PERENNIAL_HOME", str(settings.home))
    run_dir = candidate(settings, month(1), bias=0.1)
    ledger.append(
        settings.ledger,
        Order(
            case=CASE,
            after=0,
            champion=7,
            candidate_key=tune.storage.read_manifest(run_dir / "export").key,
            bundle=str((run_dir / "export").relative_to(settings.root)),
            action="promote",
            trigger="manual",
            reason="a test",
            actor="a test",
            as_of=month(1),
        ),
    )
    return settings


@pytest.mark.slow
def test_it_measures_the_champion_on_a_triton_of_its_own(champion, monkeypatch, tmp_path, capsys):
    """Two ways are measured on a real Triton, told as ratios, and the block is written; the state is as it was."""
    mine = tmp_path / "params"
    mine.mkdir()
    text = (CASES_ROOT / CASE / "params.yaml").read_text()
    (mine / f"{CASE}.yaml").write_text(text)
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(mine))
    monkeypatch.setattr(grid, "INSTANCES", (1,))
    monkeypatch.setattr(grid, "BATCHINGS", (None, Batching(window_ms=5)))
    before = sorted(path for path in Path(champion.root).rglob("*") if path.is_file())
    assert tune.main(["--case", CASE, "--seconds", "0.3", "--rounds", "2", "--write"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"1 instance, no batching +1\.00 +1\.00 +1\.00 +1\.00", said), said
    # One client waits out the window for every request: never 200 a second, however fast or busy the machine is.
    alone = [int(rate) for rate in re.findall(r"round \d, 1 instance, 5 ms: ([\d,]+)/s at 1,", said)]
    assert len(alone) == 2, said
    assert max(alone) < 200, said
    serving = load_params(CASE).serving
    assert (serving.device, serving.instances, serving.batching) == ("cpu", 1, None)
    assert serving.slo.p99_ms >= serving.slo.p95_ms > 10
    assert serving.deadline_seconds >= 1
    assert sorted(path for path in Path(champion.root).rglob("*") if path.is_file()) == before
    assert not champion.model_repository.exists()


def test_rows_are_those_of_the_holdout(champion):
    """One inference for each row of the holdout that the champion was judged on, encoded as the gateway encodes it."""
    fields = load_fields(CASE)
    rows = tune.rows_of(champion, fields, ledger.head(champion.ledger, CASE))
    assert len(rows) == 40
    assert {part.tensors["numeric"].shape for [part] in rows} == {(1, len(fields.numeric))}


@pytest.mark.slow
def test_what_a_killed_measurement_left_is_ended_by_the_next(tmp_path, monkeypatch):
    """The Triton and the folder of a dead process go; those of one that lives, and folders of others, stay."""
    monkeypatch.setattr(tune.tempfile, "tempdir", str(tmp_path))
    dead, mine, other = (tmp_path / f"{tune.FOLDER}{name}" for name in ("dead", "mine", "other"))
    for folder in (dead, mine, other):
        folder.mkdir()
    (dead / tune.OWNER).write_text(f"{os.getpid()} 1")
    (mine / tune.OWNER).write_text(f"{os.getpid()} {tune.birth(os.getpid())}")
    left = tune.triton.start_triton(dead, Ports.free())
    assert alive(left)
    tune.sweep()
    assert not alive(left)
    assert sorted(tmp_path.iterdir()) == [mine, other]
