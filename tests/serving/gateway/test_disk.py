"""A real file system that is full, or read-only: the gateway and the commands say so, and name no path to a client."""

import asyncio
import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.cases import load_fields
from pipelines.params import EventTimes, ServingParams
from pipelines.settings import Settings
from serving.gateway.cases import open_case
from serving.gateway.log import Log, worker_name
from serving.gateway.metrics import Metrics
from serving.gateway.refusal import Refused
from serving.gateway.settings import Bounds
from serving.gateway.state import Gateway
from tests.serving.gateway.world import (
    LABELS,
    PREDICT,
    client,
    fake_triton,
    lines,
    make_home,
    release,
    some_rows,
    until,
)

CASES = Path(__file__).parents[3]


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system can be mounted here: only root may, and not in every container")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(path: Path) -> None:
    """Take what room there is."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass


def silence(home: Path) -> subprocess.CompletedProcess:
    """A command that writes to the ledger."""
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "silence",
        "--case",
        "loans",
        "--rule",
        "labels_late",
        "--until",
        "2030-01-01",
        "--reason",
        "x" * 5000,
    ]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=CASES, env={**os.environ, "PERENNIAL_HOME": str(home)}, check=False
    )


def test_a_state_that_is_only_read_is_no_full_disk(disk):
    """A gateway whose state is mounted read-only, its log and index apart from it and writable, can log.

    With a log that is read-only it says so.
    """
    gateway = SimpleNamespace(settings=Settings(home=disk), cases={})
    for name in ("prediction_log", "gateway"):
        (disk / name).mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk / name], check=True)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert Gateway.disk(gateway) == ""
    subprocess.run(["mount", "-o", "remount,ro", disk / "prediction_log"], check=True)
    assert "read-only" in Gateway.disk(gateway)


def test_room_for_less_than_was_refused_is_no_room(disk):
    """A log stays full while what it refused would still not fit, and is whole once it would."""
    log = Log(disk, worker_name(), max_bytes=2**24, max_seconds=3600.0, on_error=lambda: None)
    ballast = disk / "ballast"
    fill(ballast)
    os.truncate(ballast, ballast.stat().st_size - 256 * 1024)
    with pytest.raises(Refused, match="full"):
        log.append(bytes(512 * 1024))
    asyncio.run(log.tick())
    assert "full" in log.failing
    os.truncate(ballast, ballast.stat().st_size - 512 * 1024)
    asyncio.run(log.tick())
    assert log.failing == ""


def test_an_index_without_room_ends_no_worker(disk, tmp_path):
    """A segment is closed though the index, on a disk of its own that is full, cannot keep that it is known."""
    settings = make_home(tmp_path / "state")
    (settings.root / "gateway").symlink_to(disk)
    metrics = Metrics()
    case = open_case(load_fields("loans"), EventTimes(), ServingParams(), settings, Bounds(), metrics)
    case.predictions_log.append(b"{}\n")
    fill(disk / "ballast")
    asyncio.run(Gateway.tidy(SimpleNamespace(metrics=metrics), case, close=True))
    assert list(case.predictions_log.folder.glob("*.jsonl"))
    case.index.close()


def test_a_full_disk_is_507_everywhere(disk):
    """Rows, rows with ids and labels are refused with 507 and without a path, /readyz says why.

    With room again all is as before.
    """
    with fake_triton() as (_, port):
        settings = make_home(disk / "state", port)
        release(settings, 1)
        with client(settings) as http:
            named = [{**some_rows(1)[0], "prediction_id": "named"}]
            label = {"labels": [{"prediction_id": "named", "label": 1}] * 500}
            assert http.get("/readyz").status_code == 200
            assert http.post(PREDICT, json={"rows": some_rows(2)}).status_code == 200
            fill(disk / "ballast")
            said = [
                http.post(PREDICT, json={"rows": some_rows(100)}),
                http.post(PREDICT, json={"rows": named * 1}),
                http.post(LABELS, json=label),
            ]
            said.append(
                http.post(
                    PREDICT,
                    json={"rows": [{**row, "prediction_id": f"n{at}"} for at, row in enumerate(some_rows(100))]},
                )
            )
            # What was found with room may be told for ready_seconds more.
            until(lambda: http.get("/readyz").status_code == 503)
            ready = http.get("/readyz")
            assert [answer.status_code for answer in said] == [507] * 4
            assert not [answer.text for answer in (*said, ready) if str(disk) in answer.text]
            assert ready.status_code == 503
            assert "full" in ready.json()["error"]
            assert len(lines(settings)) == 2
            told = silence(settings.root)
            assert told.returncode == 1
            assert "the disk is full" in told.stderr
            assert "does not answer" not in told.stderr
            (disk / "ballast").unlink()
            until(lambda: http.get("/readyz").status_code == 200)
            assert http.post(PREDICT, json={"rows": named}).status_code == 200
            assert http.post(LABELS, json=label).status_code == 200


def test_a_read_only_state_folder_is_named(disk):
    """A command that must write says that the folder cannot be written, not that the ledger does not answer."""
    assert silence(disk / "state").returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    told = silence(disk / "state")
    assert told.returncode == 2
    assert "the state folder cannot be written" in told.stderr
