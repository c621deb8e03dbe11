"""Whose mistake an error is: one that was raised in a case's folder is the case's, told with its file and line.

A full disk is nobody's.
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from pathlib import Path

from pipelines import case_files
from pipelines.errors import CaseError, ConfigError, NoRoom, PerennialError

MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What says that code or data are wrong, and will be so the next time."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_WORDS = ("No space left on device", "os error 28", "Disk quota exceeded", "database or disk is full")
_SHUT = (errno.EROFS, errno.EACCES)
_SHUT_WORDS = ("Read-only file system", "attempt to write a readonly database", "unable to open database file")
MOST_CHARACTERS = 600
"""A library's words may hold a whole table."""


def place(error: BaseException) -> tuple[str, str] | None:
    """``(case, "<file>, line N")`` of the deepest call in a case's folder; None: there is none.

    What the error was raised from is searched where its own traceback leads through no case.
    """
    for one in _chain(error):
        if isinstance(one, SyntaxError) and one.filename and (found := _in_case(one.filename, one.lineno)):
            return found
        for frame, line in reversed(list(traceback.walk_tb(one.__traceback__))):
            if found := _in_case(frame.f_code.co_filename, line):
                return found
    return None


def of_case(error: BaseException) -> CaseError | None:
    """An unforeseen error as its case's own, if a case's code raised it: case, file, line, its words, what to do.

    None for an error that is one of ours already, and for one that no case's code had a part in. Trying again may
    mend what a service or the operating system does (a share or a warehouse that is away), never a mistake in
    code or in the data's form.
    """
    if isinstance(error, PerennialError) or (found := place(error)) is None:
        return None
    case, where = found
    retry = not isinstance(error, MISTAKES) and type(error).__module__.partition(".")[0] != "polars"
    return CaseError(f"case {case}: {where}: {said(error)}: mend this line, or the data that it reads", retry=retry)


def of_disk(error: BaseException) -> NoRoom | ConfigError | None:
    """An unforeseen error as what it is where a disk is full, or a folder cannot be written; None for any other.

    Libraries (SQLite, Arrow, torch) have errors of their own for it, which repeat the system's words.
    """
    for one in _chain(error):
        number = getattr(one, "errno", None)
        words = str(one)
        if number in _FULL or any(text in words for text in _FULL_WORDS):
            return NoRoom(
                f"the disk is full ({said(one)}): make room in the state folder (PERENNIAL_HOME), then run again"
            )
        if place(error) is None and (number in _SHUT or any(text in words for text in _SHUT_WORDS)):
            return ConfigError(
                f"the state folder cannot be written ({said(one)}): make it writable for this user, "
                "or set PERENNIAL_HOME to one that is"
            )
    return None


def told(error: PerennialError) -> str:
    """What an error of ours says, and where a case's code met it, if it did and does not say so already."""
    found = place(error)
    if found is None or found[1] in str(error):
        return str(error)
    return f"{error} ({found[1]})"


def said(error: BaseException) -> str:
    """The error's kind and words, as one line."""
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    text = " ".join(words.split())
    return f"{type(error).__name__}: {text[:MOST_CHARACTERS]}{'...' if len(text) > MOST_CHARACTERS else ''}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)


def _in_case(file: str, line: int | None) -> tuple[str, str] | None:
    path = Path(file)
    if path.is_relative_to(case_files.CASES_ROOT):
        inside = path.relative_to(case_files.CASES_ROOT).parts
        # What lies in cases/ itself is shared by the cases: ours.
        if len(inside) > 1:
            return (inside[0], f"{'/'.join(('pipelines', 'cases', *inside))}, line {line}")
        return None
    for case, found in case_files.found().items():
        if path.is_relative_to(found.folder):
            return (case, f"{path}, line {line}")
    return None
