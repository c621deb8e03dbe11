"""Checkpoints on disk: a folder each, published whole, checked before it is trusted.

All ranks write into a temporary folder; rank 0 adds the list of checksums, makes all of it durable and renames the
folder to ``step-N``. A kill at any moment leaves the checkpoint before.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.errors import IntegrityError
from pipelines.files import file_sha256, fsync_folder, make_durable, write_atomic
from pipelines.training.group import all_reduce_sum, barrier, get_rank

STATE = "state.json"
SUMS = "sha256.json"

log = logging.getLogger(__name__)


def publish(folder: Path, step: int, write: Callable[[Path], None], state: dict[str, Any], keep: int) -> bool:
    """All ranks: ``write`` a checkpoint of ``step`` and keep the newest ``keep``.

    Returns False, with a warning, if it could not be written. A checkpoint is insurance: a full disk must not end the
    training that it insures.
    """
    rank = get_rank()
    work = folder / f".step-{step}"
    if rank == 0:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
    barrier()
    trouble = _attempt(lambda: write(work))
    # Agreed before it is published too: a slower rank may still be writing its part.
    failed = _on_any_rank(trouble is not None)
    if not failed:
        if rank == 0:
            trouble = _attempt(lambda: _seal(work, folder, step, state))
        failed = _on_any_rank(trouble is not None)
    if rank == 0 and failed:
        shutil.rmtree(work, ignore_errors=True)
    if trouble is not None:
        log.warning(
            "the checkpoint of step %d could not be written (%s): training goes on without it; free space in %s",
            step,
            trouble,
            folder,
        )
    if rank == 0 and not failed:
        for path in sorted(folder.glob("step-*"), key=_step)[:-keep]:
            shutil.rmtree(path, ignore_errors=True)
    return not failed


def _on_any_rank(condition: bool) -> bool:
    return all_reduce_sum([condition])[0] > 0


def _attempt(work: Callable[[], None]) -> str | None:
    """What went wrong, in a line, or None."""
    # torch's writers turn a full disk into RuntimeError or into their own CheckpointException, a BaseException.
    try:
        work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001
        # A CheckpointException's text is a traceback: its last line is the reason.
        return [line for line in [type(error).__name__, *str(error).splitlines()] if line.strip()][-1]
    return None


def _seal(work: Path, folder: Path, step: int, state: dict[str, Any]) -> None:
    """Add state and checksums, make everything durable, publish."""
    (work / STATE).write_text(json.dumps(state))
    written = sorted(path for path in work.rglob("*") if path.is_file() or path.is_dir())
    sums = {str(path.relative_to(work)): file_sha256(path) for path in written if path.is_file()}
    make_durable(written)
    write_atomic(work / SUMS, json.dumps(sums).encode())
    target = folder / f"step-{step}"
    # Left by a try whose checkpoint was found damaged, or that went another way: what is newer stands.
    shutil.rmtree(target, ignore_errors=True)
    os.replace(work, target)
    fsync_folder(folder)


def latest_checkpoint(folder: Path) -> Path | None:
    """All ranks: the newest checkpoint whose bytes are those that were written; damaged ones are named in a warning."""
    step = 0
    if get_rank() == 0:
        step = _latest_whole_step(folder)
    # The other ranks add nothing: rank 0 alone looks, and all hear what it found.
    step = int(all_reduce_sum([step])[0])
    if not step:
        return None
    return folder / f"step-{step}"


def _latest_whole_step(folder: Path) -> int:
    """The step of the newest checkpoint that is not damaged; 0 if there is none."""
    for path in sorted(folder.glob("step-*"), key=_step, reverse=True):
        trouble = damage(path)
        if trouble is None:
            return _step(path)
        log.warning("%s is damaged (%s): the checkpoint before it is used", path, trouble)
    return 0


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's bytes, or None."""
    try:
        sums: dict[str, str] = json.loads((path / SUMS).read_text())
        wrong = [name for name, sha256 in sums.items() if file_sha256(path / name) != sha256]
    except (OSError, ValueError) as error:
        return str(error)
    if not wrong:
        return None
    return f"the bytes of {', '.join(wrong)} have changed"


def state_of(path: Path) -> dict[str, Any]:
    """The state that was published with a checkpoint. Raises IntegrityError if it has none."""
    try:
        state: dict[str, Any] = json.loads((path / STATE).read_text())
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path / STATE} cannot be read ({error}): remove the folder {path}") from error
    return state


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
