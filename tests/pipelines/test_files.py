"""pipelines/files.py: a file appears whole, and what killed writers of it left is removed."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipelines.files import write_atomic, write_once


def _dies(call: str, after: bool, write: Callable[[], object]) -> None:
    """``write`` in a process that is killed at a system call, before or after it was done."""
    real = getattr(os, call)

    def last(*arguments: object, **named: object) -> None:
        if after:
            real(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        setattr(os, call, last)
        write()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("write", "call", "after"),
    [
        (write_atomic, "fsync", False),
        (write_atomic, "replace", False),
        (write_once, "fsync", False),
        (write_once, "link", False),
        (write_once, "link", True),
    ],
)
def test_what_a_killed_write_left_is_removed_by_the_next(tmp_path: Path, write, call: str, after: bool):
    """After SIGKILL at any call of a write, the next write of the file removes what was left of it.

    It removes nothing else.
    """
    path = tmp_path / "rows.parquet"
    other = tmp_path / ".rows.parquet.note"
    other.touch()
    for _ in range(2):
        path.unlink(missing_ok=True)
        _dies(call, after, lambda: write(path, b"killed"))
    assert len(list(tmp_path.iterdir())) > 1
    write(path, b"whole")
    assert {file.name for file in tmp_path.iterdir()} == {path.name, other.name}
    assert path.read_bytes() == (b"killed" if after else b"whole")


def test_a_live_writer_keeps_its_temporary_file(tmp_path: Path):
    """A write that ends while another one of the same file is under way leaves that one alone, which ends too."""
    path = tmp_path / "folder" / "rows.parquet"
    begun = tmp_path / "begun"
    go_on = tmp_path / "go_on"
    replace = os.replace

    def slow(source: Path, target: Path) -> None:
        begun.touch()
        while not go_on.exists():
            time.sleep(0.01)
        replace(source, target)

    def run() -> None:
        os.replace = slow
        write_atomic(path, b"slow")

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    while not begun.exists():
        time.sleep(0.01)
    write_atomic(path, b"quick")
    assert path.read_bytes() == b"quick"
    assert len(list(path.parent.iterdir())) == 2
    go_on.touch()
    child.join(30)
    assert (child.exitcode, path.read_bytes(), len(list(path.parent.iterdir()))) == (0, b"slow", 1)


def test_many_writers_of_one_file_leave_one_file(tmp_path: Path):
    """Of 24 writers at once, more than have names of their own, each ends, and nothing but the file is left."""
    path = tmp_path / "rows.parquet"
    with ThreadPoolExecutor(24) as pool:
        list(pool.map(lambda number: write_atomic(path, b"%d" % number * 100), range(96)))
    assert len(path.read_bytes()) in {100, 200}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
