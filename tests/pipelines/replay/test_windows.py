"""pipelines/replay/windows.py: which length of training history pays, by a probe per length."""

import json

import pytest

from pipelines import cli
from pipelines.params_file import load_params
from pipelines.replay.windows import windows
from pipelines.settings import Settings
from tests.pipelines.replay.small import SINCE, UNTIL, write_params

OPTIONS = ["windows", "--case", "loans", "--since", str(SINCE), "--until", str(UNTIL), "--json"]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """Nine days of loans, of which seven have another rule for what is granted; four days are declared."""
    folder = tmp_path_factory.mktemp("windows")
    params = load_params("loans", write_params(folder))
    params = params.model_copy(update={"headroom": params.headroom.model_copy(update={"family": "logistic"})})
    return windows(params, Settings(home=folder), (1, 4, 30), SINCE, UNTIL)


def test_in_a_world_that_turned_old_rows_cost(found):
    """Months of the old rule lose against the declared four days, and no other length is advised for sure."""
    by_days = {one["days"]: one for one in found["lengths"]}
    assert list(by_days) == [1, 4, 30]
    assert by_days[4]["saves"] is None
    assert by_days[30]["loss"] > by_days[4]["loss"] + 0.05
    assert by_days[30]["saves"] == pytest.approx(by_days[4]["loss"] - by_days[30]["loss"], abs=1e-5)
    assert by_days[30]["low"] < by_days[30]["saves"] < by_days[30]["high"]
    assert (found["ticks"], found["declared_days"], found["family"]) == (9, 4, "logistic")
    assert "window_days" in found["advice"]


def test_a_length_learns_nothing_that_was_not_known(tmp_path, monkeypatch):
    """Every probe's rows have a label that had arrived when the tick that it is judged on began."""
    from pipelines.headroom import probe

    seen = []
    fit = probe.fit

    def watched(rows, fields, family):
        seen.append((rows["event_time"].max(), rows["label_time"].max()))
        return fit(rows, fields, family)

    monkeypatch.setattr(probe, "fit", watched)
    params = load_params("loans", write_params(tmp_path))
    params = params.model_copy(update={"headroom": params.headroom.model_copy(update={"family": "logistic"})})
    found = windows(params, Settings(home=tmp_path), (4,), SINCE, SINCE.replace(day=SINCE.day + 2))
    assert [label_time.date() <= day for (_, label_time), day in zip(seen, _days(found), strict=True)] == [True, True]
    assert all(event_time < label_time for event_time, label_time in seen)


def _days(found):
    from datetime import date, timedelta

    first = date.fromisoformat(found["from"])
    return [first + timedelta(days=number) for number in range(found["ticks"])]


@pytest.mark.parametrize("lengths", ["none", "0,30", "30,"])
def test_lengths_that_are_no_days_are_refused(lengths, capfd):
    """A list that is none is a usage error that quotes it and says how one is written."""
    with pytest.raises(SystemExit):
        cli.main([*OPTIONS, "--lengths", lengths])
    assert f"{lengths!r} is no list of days: write 30,90,365" in capfd.readouterr().err


def test_times_without_a_row_to_judge_say_so(tmp_path, monkeypatch, capfd):
    """A stretch in which no tick has enough rows is an error that names it; no table of nothing."""
    write_params(tmp_path)
    params = (tmp_path / "loans.yaml").read_text()
    (tmp_path / "loans.yaml").write_text(params.replace("min_rows: 40", "min_rows: 4000"))
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    assert cli.main([*OPTIONS, "--lengths", "4"]) == 1
    said = capfd.readouterr().err.splitlines()[-1]
    assert "loans: none of the 9 ticks from 2020-06-08 to 2020-06-16 has 4000 labelled rows" in said


def test_the_command_answers_as_one_line_of_json(tmp_path, monkeypatch, capfd):
    """`python -m pipelines windows` gives every length with its loss, and the advice."""
    write_params(tmp_path)
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    assert cli.main([*OPTIONS, "--lengths", "2"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [one["days"] for one in answer["lengths"]] == [2, 4]
    assert answer["advice"].startswith(("Set dataset.window_days to 2", "Leave dataset.window_days at 4"))
