"""The log's segments: whole lines, closed in time, taken over from the dead."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.segments import adopt
from serving.gateway import log as gateway_log
from serving.gateway.log import Log, worker_name
from serving.gateway.refusal import Refused
from tests.serving.gateway.world import (
    LABELS,
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


def make(folder, **settings):
    """A log and the list of its errors."""
    errors = []
    return Log(
        folder,
        worker_name(),
        **{"max_bytes": 2**20, "max_seconds": 3600.0, **settings},
        on_error=lambda: errors.append(1),
    ), errors


def names(folder, pattern):
    """Matching names, sorted."""
    return sorted(path.name for path in folder.glob(pattern))


def test_lines_are_readable_at_once_and_closed_by_a_rename(tmp_path):
    """An appended line is in an open segment when append returns.

    Close() renames the segment and leaves nothing open.
    """
    log, _ = make(tmp_path)
    log.append(b"one\n")
    log.append(b"two\n")
    (opened,) = tmp_path.glob("*.jsonl.open")
    assert opened.read_bytes() == b"one\ntwo\n"
    assert len(asyncio.run(log.close())) == 1
    assert names(tmp_path, "*.open") == []
    (closed,) = tmp_path.glob("*.jsonl")
    assert closed.read_bytes() == b"one\ntwo\n"


def test_a_closed_segment_is_sealed(tmp_path):
    """Beside a closed segment lies its sha256, in sha256sum's form.

    Beside an open one, and one without a line, nothing does.
    """
    log, _ = make(tmp_path)
    log.undo(log.append(b"taken back\n"))
    asyncio.run(log.close())
    log.append(b"one\n")
    assert names(tmp_path, "*.sha256") == []
    asyncio.run(log.close())
    (tmp_path / "dead-000001.jsonl.open").write_bytes(b"whole\ntorn")
    assert adopt(tmp_path) == 1
    assert [name.replace(".sha256", ".jsonl") for name in names(tmp_path, "*.sha256")] == names(tmp_path, "*.jsonl")
    for name in names(tmp_path, "*.sha256"):
        assert (
            subprocess.run(
                ["sha256sum", "--check", "--strict", name], cwd=tmp_path, capture_output=True, check=False
            ).returncode
            == 0
        )
    assert len(names(tmp_path, "*")) == 4


def test_a_full_segment_is_followed_by_the_next(tmp_path):
    """A segment that has reached its size is closed by the next tick; later lines go to a new one, nothing is lost."""
    log, _ = make(tmp_path, max_bytes=10)
    for number in range(6):
        log.append(b"line %d\n" % number)
    asyncio.run(log.tick())
    asyncio.run(log.close())
    assert len(names(tmp_path, "*.jsonl")) == 3
    assert b"".join((tmp_path / name).read_bytes() for name in names(tmp_path, "*.jsonl")) == b"".join(
        b"line %d\n" % n for n in range(6)
    )


def test_an_idle_gateway_closes_its_segments(tmp_path):
    """Rows and labels of the only request are in closed segments soon after, though no further request comes."""
    with fake_triton() as (_, port):
        settings = make_home(tmp_path, port, log_segment_seconds=0.2)
        release(settings, 1)
        with client(settings) as http:
            http.post(PREDICT, json={"rows": some_rows(2)})
            http.post(LABELS, json={"labels": [{"prediction_id": "a", "label": 1}]})
            for kind in ("predictions", "labels"):
                folder = settings.prediction_log / "loans" / kind
                until(lambda folder=folder: names(folder, "*.jsonl") and not names(folder, "*.open"))
            assert len(lines(settings)) == 2
            assert http.post(PREDICT, json={"rows": some_rows(1)}).status_code == 200
        assert len(names(settings.prediction_log / "loans" / "predictions", "*.jsonl")) == 2


def test_a_failed_write_leaves_whole_lines_only(tmp_path, monkeypatch):
    """When the disk takes half a line and refuses the rest, the request is refused (507) and the half is taken back."""
    log, errors = make(tmp_path)
    log.append(b"first\n")
    real = os.write
    calls = []

    def half(fd, data):
        calls.append(len(data))
        if len(calls) == 1:
            return real(fd, data[:3])
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(gateway_log.os, "write", half)
    with pytest.raises(Refused) as refused:
        log.append(b"second\n")
    assert refused.value.status == 507
    assert errors
    monkeypatch.undo()
    log.append(b"third\n")
    asyncio.run(log.close())
    (closed,) = tmp_path.glob("*.jsonl")
    assert closed.read_bytes() == b"first\nthird\n"


def test_a_torn_line_that_stays_is_the_last_of_its_segment(tmp_path, monkeypatch):
    """When even the half line cannot be taken back, the segment ends with it and the next line starts a new segment."""
    log, _ = make(tmp_path)
    log.append(b"first\n")
    real = os.write

    def half(fd, data):
        if len(data) > 4:
            return real(fd, data[:3])
        raise OSError(errno.EIO, "broken")

    def cannot(fd, size):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(gateway_log.os, "write", half)
    monkeypatch.setattr(gateway_log.os, "ftruncate", cannot)
    with pytest.raises(Refused) as refused:
        log.append(b"second\n")
    assert refused.value.status == 503
    monkeypatch.undo()
    log.append(b"third\n")
    asyncio.run(log.close())
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path, "*.jsonl")] == [b"first\nsec", b"third\n"]


def test_undo_takes_back_the_last_append(tmp_path):
    """An append that must not count is gone, also from a segment that it filled."""
    log, _ = make(tmp_path, max_bytes=12)
    log.append(b"first\n")
    log.undo(log.append(b"second\n"))
    log.append(b"third\n")
    asyncio.run(log.close())
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path, "*.jsonl")] == [b"first\n", b"third\n"]


def test_only_segments_of_the_dead_are_taken_over(tmp_path):
    """At a start, left-over segments are closed without their torn line, empty ones removed.

    Those of living workers are left alone.
    """
    log, _ = make(tmp_path)
    log.append(b"alive\n")
    (tmp_path / "dead-000001.jsonl.open").write_bytes(b"whole\n" * 20_000 + b"torn" * 50_000)
    (tmp_path / "dead-000002.jsonl.open").write_bytes(b"only torn")
    assert adopt(tmp_path) == 2
    assert (tmp_path / "dead-000001.jsonl").read_bytes() == b"whole\n" * 20_000
    assert names(tmp_path, "dead-000002*") == []
    assert len(names(tmp_path, "*.open")) == 1
    log.append(b"still\n")
    asyncio.run(log.close())
    assert len(names(tmp_path, "*.jsonl")) == 2


FULL_DISK = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.serving.gateway.world import PREDICT, client, fake_triton, make_home, release, some_rows
with fake_triton() as (_, port):
    settings = make_home(Path({home!r}), port)
    release(settings, 1)
    with client(settings) as http:
        small, large = {{"rows": some_rows(1)}}, {{"rows": some_rows(200)}}
        said = [http.post(PREDICT, json=small)]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        said.append(http.post(PREDICT, json=large))
        named = {{**small["rows"][0], "prediction_id": "named"}}
        said.append(http.post(PREDICT, json={{"rows": [named] * 2 + large["rows"]}}))
        said.append(http.post(PREDICT, json=small))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        said.append(http.post(PREDICT, json=large))
        said.append(http.post(PREDICT, json={{"rows": [{{**small["rows"][0], "prediction_id": "named"}}]}}))
    print(json.dumps([[answer.status_code, answer.json()] for answer in said]))
"""


def test_a_full_disk_acknowledges_nothing_that_it_does_not_hold(tmp_path):
    """A write that the kernel cuts short (file size limit) is a 507 with a clear text.

    Before, beside and after it, log and answers are the same rows.
    """
    root = Path(__file__).parents[3]
    script = FULL_DISK.format(root=str(root), home=str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=False, timeout=60
    )
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout)
    assert [status for status, _ in said] == [200, 507, 507, 200, 200, 200]
    assert "full" in said[1][1]["error"]
    answered = [row["prediction_id"] for status, answer in said if status == 200 for row in answer["rows"]]
    assert sorted(answered) == sorted(line["prediction_id"] for line in lines(make_home(tmp_path)))


def test_log_errors_and_lines_are_counted(world):
    """Every acknowledged row is one more in the metric of log lines."""
    before = counted(world.http, "log_lines_total", kind="predictions")
    world.http.post(PREDICT, json={"rows": some_rows(3)})
    assert counted(world.http, "log_lines_total", kind="predictions") == before + 3
    assert counted(world.http, "log_errors_total") == 0
