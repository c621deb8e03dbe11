"""The demo waits until the gateway has closed its segments."""

from pathlib import Path

import pytest

from embedded.demo.traffic import wait_for_closed_segments
from pipelines.errors import Unavailable


def test_a_segment_that_is_closed_while_it_is_looked_at_is_closed(tmp_path, monkeypatch):
    """A segment that was seen open and has its final name before its size is asked is waited for no more."""
    monkeypatch.setattr(Path, "rglob", lambda self, _pattern: [self / "closed.jsonl.open"])
    wait_for_closed_segments(tmp_path, "loans", seconds=0)


def test_only_segments_with_rows_are_waited_for(tmp_path):
    """An open segment that is empty is nobody's business.

    One with rows that nobody closes is an error that names it.
    """
    segment = tmp_path / "loans" / "predictions" / "one.jsonl.open"
    segment.parent.mkdir(parents=True)
    segment.touch()
    wait_for_closed_segments(tmp_path, "loans", seconds=0)
    segment.write_text("{}\n")
    with pytest.raises(Unavailable, match=r"one\.jsonl\.open is still open"):
        wait_for_closed_segments(tmp_path, "loans", seconds=0)
