"""The proof of serving: what it counts of answers, memory and logs, and which goals follow."""

from pathlib import Path

import pytest
import yaml

from benchmarks.bench import serving_load as load
from benchmarks.bench import serving_stack as stack
from benchmarks.proof import serving as proof
from pipelines.params_file import load_params


def seen(status, body=b"", seconds=0.01):
    """One answer."""
    return proof.Seen(0.0, seconds, status, body)


def test_answered_rows_are_known_by_their_ids():
    """Ids are taken from answers of 200, every row of them, and from nothing else."""
    two = b'{"request_id":"r","rows":[{"prediction_id":"a","score":1},{"prediction_id":"b","default":true}]}'
    assert proof.answered_ids([seen(200, two), seen(503, b'"prediction_id":"c"'), seen(200, two)]) == [
        "a",
        "b",
        "a",
        "b",
    ]


def test_refusals_are_grouped_by_their_words():
    """Numbers do not tell two refusals apart, words do."""
    said = [seen(503, b'{"error":"%d requests"}' % number) for number in (96, 97)] + [seen(503, b'{"error":"late"}')]
    assert proof.reasons(said) == {'{"error":"# requests"}': 2, '{"error":"late"}': 1}


def test_memory_that_grows_has_a_slope():
    """The slope is a second's; of values that only swing it is none."""
    assert proof.slope([100.0 + number for number in range(10)]) == pytest.approx(2.0)
    assert proof.slope([100.0, 101.0] * 20) == pytest.approx(0.0, abs=0.1)
    assert proof.slope([1.0]) == 0.0


def outage(**more):
    """What an outage came to that kept every promise."""
    counts = ("unanswered", "503 before the kill", "503 after Triton was back")
    logs = ("answered and not logged", "logged and not answered")
    kept = dict.fromkeys((*counts, *logs), 0) | {"all answered s": 4.0, "default": False, "default answers": 0}
    return kept | {"statuses": {"200": 900, "503": 100}} | more


def test_what_an_outage_breaks_is_named():
    """503 meanwhile is no failure, but with a default answer; a lost log line, a 500 and a late end are failures."""

    def broken(**more):
        return [each["name"].partition(": ")[2] for each in proof.outage_goals(outage(**more)) if not each["holds"]]

    assert broken() == []
    assert broken(**{"answered and not logged": 1}) == ["answered rows that are not in the log"]
    assert broken(statuses={"200": 9, "500": 1}) == ["statuses other than 200 and 503"]
    assert broken(**{"all answered s": 11.0}) == ["seconds from Triton's end until everybody was answered"]
    assert broken(default=True) == ["503", "flagged default answers"]
    assert broken(default=True, statuses={"200": 1000}, **{"default answers": 100}) == []


def test_an_overload_without_a_refusal_is_no_overload():
    """Refusals are part of what is shown: without any their latency is no pass."""
    row = {
        "capacity/s": 100,
        "offered/s": 300,
        "statuses": {"200": 100},
        "accepted/s": 90,
        "accepted ms (p50, p95, p99)": [10, 20, 150],
        "refused ms (p50, p95, p99)": [],
        "slo ms": 200.0,
        "MiB grown": 1.0,
    }
    assert [each["name"] for each in proof.overload_goals("bank", row) if not each["holds"]] == [
        "overload of bank: p99 of refusals (ms)"
    ]
    held = proof.overload_goals(
        "bank", row | {"refused ms (p50, p95, p99)": [1, 2, 3], "statuses": {"200": 1, "503": 2}}
    )
    assert all(each["holds"] for each in held)


def test_a_storm_may_take_half_of_the_others_time():
    """One and a half times the p99 holds, more does not, and a refusal of the calm case never does."""
    row = {"calm": "bank", "storming": "triage", "ratio": 1.5, "calm statuses": {"200": 90}}
    assert [each["holds"] for each in proof.storm_goals(row)] == [True, True]
    assert [each["holds"] for each in proof.storm_goals(row | {"ratio": 1.6})] == [False, True]
    assert not proof.storm_goals(row | {"calm statuses": {"200": 90, "503": 1}})[1]["holds"]


def test_statuses_are_told_in_words():
    """An ended connection and a silence have names."""
    assert proof.told({200: 5, load.ENDED: 1, load.NOTHING: 2, 503: 0}) == {"nothing": 2, "ended": 1, "200": 5}


def test_parameters_of_a_state_are_the_cases_with_changes(tmp_path: Path):
    """The gateway's parameters are the case's own but for the bench's changes, block by block, and they are valid."""
    stack.write_params(tmp_path, "bank", proof.declared(default=0.25, slo=200.0))
    path = tmp_path / stack.PARAMS / "bank.yaml"
    params, own = load_params("bank", path), load_params("bank")
    assert (params.serving.default, params.serving.slo.p99_ms) == (0.25, 200.0)
    assert (params.serving.device, params.model, params.gate.metric) == (own.serving.device, own.model, own.gate.metric)
    assert params.training_rows == "source"
    stack.write_params(tmp_path, "bank", proof.declared())
    assert "default" not in yaml.safe_load(path.read_text())["serving"]
