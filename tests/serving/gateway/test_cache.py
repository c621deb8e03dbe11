"""Scores that a worker keeps: whose they are, for how long, and that each answer is logged as any other."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cases import file_of
from pipelines.fields import AGE, EVENT_TIME, Attribute, Fields, Moment, Numeric
from pipelines.params import Cache
from serving.gateway.cache import Kept, keys
from tests.serving.gateway.world import (
    PREDICT,
    client,
    counted,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

ROWS = some_rows(4)
NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)


class Clock:
    """A clock that stands until it is set."""

    now = 0.0

    def __call__(self):
        """The time."""
        return self.now


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from([b"a", b"b", b"c"]), st.floats(0, 1), st.floats(0, 4)), max_size=40
    ),
    st.integers(1, 3),
)
def test_what_is_kept_is_what_was_given_last_and_is_young(given_, outputs):
    """Whatever is kept and asked for in turn: a version's own newest scores, and nothing older than is declared."""
    clock = Clock()
    kept = Kept(Cache(seconds=5, rows=100), clock)
    newest = {}
    for version, key, score, pause in given_:
        clock.now += pause
        [own] = kept.keep(version, [key], [score] * outputs)
        assert own == [score] * outputs
        newest[version, key] = (clock.now, own)
        for one in range(4):
            for name in (b"a", b"b", b"c"):
                moment, scores = newest.get((one, name), (-10.0, None))
                [found] = kept.find(one, [name])
                assert found == (scores if clock.now < moment + 5 else None)


def test_no_more_rows_are_kept_than_declared():
    """Beyond the declared number the ones that were not asked for the longest go."""
    kept = Kept(Cache(seconds=60, rows=10), Clock())
    kept.keep(1, [str(number).encode() for number in range(100)], [0.5] * 100)
    assert sum(one is not None for one in kept.find(1, [str(number).encode() for number in range(100)])) == 10


def test_a_key_is_all_that_encoding_reads():
    """Values tell rows apart, event times only where a moment has an age, and attributes never."""
    plain = Fields("loans", (Numeric("age"), Attribute("branch")), "granted")
    aged = Fields("loans", (Numeric("age"), Moment("since", parts=(AGE,))), "granted")
    columns = {"age": (1.0, 1.0, 2.0), "branch": ("a", "b", "a"), "since": (NOON,) * 3}
    times = {EVENT_TIME: (NOON, NOON.replace(hour=13), NOON)}
    one, other, third = keys(plain, columns | times)
    assert one == other != third
    assert len(set(keys(aged, columns | times))) == 3


@contextmanager
def gateway(folder, monkeypatch, serving):
    """``(http, settings, triton)`` of a gateway whose case loans is served as ``serving`` says; its champion is 1."""
    params = folder / "params"
    params.mkdir()
    write(params, serving)
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(params))
    with fake_triton() as (triton, port):
        settings = make_home(folder / "home", port, params_dir=params)
        release(settings, 1)
        with client(settings, cases_seconds=0.1) as http:
            yield http, settings, triton


def write(params, serving):
    """Declare how loans is served."""
    own = yaml.safe_load(file_of("loans", "params.yaml").read_text())
    (params / "loans.yaml").write_text(yaml.safe_dump(own | {"serving": serving}))


def asked(http, rows):
    """What is answered: versions and scores."""
    answer = http.post(PREDICT, json={"rows": rows})
    assert answer.status_code == 200, answer.text
    return [(row["version"], row["score"]) for row in answer.json()["rows"]]


def test_rows_that_were_scored_are_answered_without_triton_and_logged(tmp_path, monkeypatch):
    """Of a request only new rows go to Triton; scores, versions and order are as ever, every answer is a line."""
    with gateway(tmp_path, monkeypatch, {"cache": {"seconds": 600}}) as (http, settings, triton):
        first = asked(http, ROWS[:2])
        mixed = asked(http, [ROWS[2], ROWS[0], ROWS[3], ROWS[1]])
        assert triton.rows == 4
        again = asked(http, ROWS)
        assert triton.rows == 4
        assert [mixed[1], mixed[3]] == first
        assert again == [*first, mixed[0], mixed[2]]
        logged = lines(settings)
        assert [(line["version"], line["score"]) for line in logged] == [*first, *mixed, *again]
        assert len({line["prediction_id"] for line in logged}) == 10
        assert counted(http, "cached_rows_total", case="loans") == 6
        assert counted(http, "rows_total", case="loans", version="1") == 10


def test_it_is_off_unless_it_is_declared(tmp_path, monkeypatch):
    """Without a declaration every row goes to Triton; what is declared later is followed, and taken back."""
    with gateway(tmp_path, monkeypatch, {}) as (http, settings, triton):
        asked(http, ROWS)
        asked(http, ROWS)
        assert triton.rows == 8
        write(settings.params_dir, {"cache": {"seconds": 600}})

        def all_kept():
            before = triton.rows
            asked(http, ROWS)
            return triton.rows == before

        until(all_kept)
        write(settings.params_dir, {})
        until(lambda: not all_kept())
        assert not all_kept()


def test_no_version_answers_with_anothers_scores(tmp_path, monkeypatch):
    """A new release scores by itself, and so does the one that stands in; kept scores are the version's own.

    What a default answered is not kept.
    """
    with gateway(tmp_path, monkeypatch, {"cache": {"seconds": 600}, "default": 0.5}) as (http, settings, triton):
        one = asked(http, ROWS)
        release(settings, 2)
        until(lambda: asked(http, ROWS[:1])[0][0] == 2)
        triton.loaded = {1}
        beside = asked(http, ROWS)
        assert beside == one  # the first row too: no request is answered by two versions
        triton.loaded = set()
        assert asked(http, some_rows(5)[4:]) == [(0, 0.5)]
        triton.loaded = {1, 2}
        two = asked(http, ROWS)
        assert {version for version, _ in two} == {2}
        assert [score for _, score in one] != [score for _, score in two]
        assert asked(http, some_rows(5)[4:])[0][0] == 2


@pytest.mark.parametrize("declared", [{"seconds": 0}, {"seconds": 1, "rows": 0}])
def test_a_cache_has_a_time_and_a_size(declared):
    """A cache that keeps nothing, or for no time, is a mistake in the parameters."""
    with pytest.raises(ValueError, match="greater than 0"):
        Cache(**declared)
