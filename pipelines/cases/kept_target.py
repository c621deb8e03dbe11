"""What the numbers stand for that a case's rows keep as labels and answers: remembered beside them, and held to.

Prediction log, labels, lake and the gateway's index keep a class as its position among the declared ones. So classes
are only added at the end while a case has state: rows or labels in its log, or a champion. Another order, another kind
of target or another unit would silently make another label of each of them, and is a ConfigError.

``target.json`` lies beside the log, where the gateway writes, and in the lake, where steps write: neither may write
where the other does, and each is held to both. Where neither is there yet, as in a state of an earlier release, the
champion's bundle says what its rows mean.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from pipelines import ledger, objects, storage
from pipelines.cases import load_fields
from pipelines.contracts import Release
from pipelines.errors import ConfigError, IntegrityError, PerennialError
from pipelines.fields import FIELDS, Fields, of_bundle
from pipelines.files import locked, make_folder, write_atomic
from pipelines.params import Params
from pipelines.segments import CLOSED, KINDS
from pipelines.settings import Settings

TARGET = "target.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Meaning:
    """A target as its numbers are read: ``classes`` by position, of a number its ``unit``, neither where it is binary.

    ``texts`` are the positions of what a source calls its labels (``label_values``), of all that were ever declared.
    """

    classes: tuple[str, ...] = ()
    unit: str | None = None
    texts: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """The kind of the target, in words."""
        if self.classes:
            return f"one of {len(self.classes)} classes"
        return "a binary label" if self.unit is None else f"a number ({self.unit})"


def meaning(fields: Fields, texts: Sequence[str] = ()) -> Meaning:
    """What numbers mean as a case is declared now; ``texts`` are the source's labels in the order of their numbers."""
    unit = None if fields.number is None else fields.number.unit
    return Meaning(fields.classes, unit, {text: number for number, text in enumerate(texts)})


def texts_of(params: Params | None) -> tuple[str, ...]:
    """The texts of labels that a declared source gives, in the order of their numbers."""
    declared = None if params is None else params.declared_source
    found: tuple[str, ...] = getattr(declared, "label_values", ())
    return found


def keep_beside_log(fields: Fields, settings: Settings) -> None:
    """Remember what the lines mean that the gateway is about to log. Raises ConfigError if those there mean another."""
    folder = settings.prediction_log / fields.case
    make_folder(folder)
    with locked(folder):
        known = _known(settings, fields.case)
        if known is not None:
            _write(folder / TARGET, _held_to(meaning(fields), known, fields.case))


def hold(params: Params, settings: Settings, *, again: bool) -> None:
    """What a step does before it reads or writes rows: :func:`keep_in_lake` of the case as it is declared now.

    A run that is done ``again``, in a folder of its own, is held to nothing: it has the rows of then, and is done by
    the commit of then, which does not know what came since.
    """
    if not again:
        keep_in_lake(load_fields(params.case), texts_of(params), settings)


def require(fields: Fields, texts: Sequence[str], settings: Settings) -> None:
    """Raise ConfigError if the rows that are there mean another than declared now; nothing is remembered."""
    objects.latest(settings.lake_dir / fields.case / TARGET)
    _held_to(meaning(fields, texts), _known(settings, fields.case) or [], fields.case)


def keep_in_lake(fields: Fields, texts: Sequence[str], settings: Settings, *, rows_follow: bool = False) -> None:
    """Remember what the case's rows mean, once it has state or ``rows_follow``.

    Raises ConfigError if those that are there mean another.
    """
    path = settings.lake_dir / fields.case / TARGET
    if not (rows_follow or _has_state(settings, fields.case)):
        return
    make_folder(path.parent)
    with locked(path.parent):
        objects.latest(path)
        known = _known(settings, fields.case)
        if known is None:
            return
        now = _held_to(meaning(fields, texts), known, fields.case)
        if path.exists() and path.read_bytes() != _bytes(now):
            objects.replace(path, _bytes(now))
        elif not path.exists():  # of two machines that meet here, both go by what the first one put
            first = objects.put_once(path, _bytes(now))
            now = _held_to(now, [(TARGET, _parsed(TARGET, first))], fields.case)
        _write(path, now)


def problem(fields: Fields, params: Params | None, settings: Settings) -> str:
    """What of a declaration makes other labels of the rows that are there, or "": as far as files here tell."""
    try:
        _held_to(meaning(fields, texts_of(params)), list(_kept(settings, fields.case)), fields.case)
    except (ConfigError, IntegrityError) as error:
        return str(error).removeprefix(f"{fields.case}: ")
    return ""


# --- what is known ------------------------------------------------------------------------------


Known = Sequence[tuple[str, Meaning]]
"""What rows mean, and which file of the state says so."""


def _known(settings: Settings, case: str) -> Known | None:
    """What the rows of a case mean: nothing if there are none, or nobody has said so; None if that is not known now."""
    kept = list(_kept(settings, case))
    if kept:
        return kept
    try:
        release = ledger.head(settings.ledger, case)
    except (PerennialError, SQLAlchemyError, OSError, ValueError) as error:
        # Without a ledger nothing is predicted or trained; the next look is held to what it says.
        log.warning("%s: what its rows mean is not known while the ledger cannot be read: %s", case, error)
        return None
    return [] if release is None else list(_trained(settings, release))


def _kept(settings: Settings, case: str) -> Iterator[tuple[str, Meaning]]:
    """What was remembered. A gateway remembers before its first line: without one it is no more than a draft."""
    beside_log, in_lake = (folder / case / TARGET for folder in (settings.prediction_log, settings.lake_dir))
    for path in [beside_log] * _has_segments(settings, case) + [in_lake]:
        name = str(path.relative_to(settings.root))
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _unread(name, error.strerror) from error
        yield name, _parsed(name, data)


def _trained(settings: Settings, release: Release) -> Iterator[tuple[str, Meaning]]:
    """What a champion was trained to answer; nothing where its bundle cannot be read."""
    try:
        folder = storage.find(settings.root / release.bundle, release.candidate_key, verify=(FIELDS,))
        trained = of_bundle(folder)
    except (PerennialError, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s: its champion's bundle does not say what its rows mean: %s", release.case, error)
        return
    yield f"{release.bundle}/{FIELDS}", meaning(trained)


def _has_state(settings: Settings, case: str) -> bool:
    """Whether there is anything that numbers stand in; so it is taken to be where the ledger cannot be read."""
    compacted = (settings.lake_dir / case / kind for kind in KINDS)
    if _has_segments(settings, case) or any(any(folder.glob("*/*")) for folder in compacted):
        return True
    try:
        return ledger.head(settings.ledger, case) is not None
    except (PerennialError, SQLAlchemyError, OSError, ValueError):
        return True


def _has_segments(settings: Settings, case: str) -> bool:
    """Whether anything was logged; no segment is ever removed, so that the first one that is seen has to do."""
    for kind in KINDS:
        folder = settings.prediction_log / case / kind
        with suppress(FileNotFoundError, PermissionError), os.scandir(folder) as entries:  # whom it is closed to: none
            if any(CLOSED in entry.name and not entry.name.startswith(".") for entry in entries):
                return True
    return False


# --- the rule -----------------------------------------------------------------------------------


def _held_to(now: Meaning, known: Known, case: str) -> Meaning:
    """What is declared ``now``, with the texts that were declared before. Raises ConfigError if numbers change."""
    for file, was in known:
        if problem := _changed(was, now, file):
            by_mistake = f"; if {file} says that by mistake, mend it there (docs/cases.md)" * file.endswith(TARGET)
            raise ConfigError(f"{case}: {problem}, or declare a new case{by_mistake}")
        now = replace(now, texts={**was.texts, **now.texts})
    return now


def _changed(was: Meaning, now: Meaning, file: str) -> str:
    if (bool(was.classes), was.unit) != (bool(now.classes), now.unit):
        return f"its rows have labels of {was} ({file}), and {now} is declared now: put the target back"
    for position, name in enumerate(was.classes):
        stands = now.classes[position] if position < len(now.classes) else None
        if stands != name:
            return (
                f"its rows keep a class as its position: {position} was {name!r} ({file}) and is "
                f"{'no class' if stands is None else repr(stands)} now: put the order of that file back and append new "
                "classes at its end"
            )
    for text, number in now.texts.items():
        if was.texts.get(text, number) != number:
            return (
                f"its rows keep the label {text!r} as {was.texts[text]} ({file}), and label_values make it {number} "
                "now: put their order back"
            )
    return ""


# --- the file -----------------------------------------------------------------------------------


def _bytes(known: Meaning) -> bytes:
    return storage.canonical_json(asdict(known)).encode()


def _write(path: Path, known: Meaning) -> None:
    data = _bytes(known)
    if not path.exists() or path.read_bytes() != data:
        write_atomic(path, data)


def _parsed(name: str, data: bytes) -> Meaning:
    try:
        found = json.loads(data)
        return Meaning(tuple(found["classes"]), found["unit"], {text: int(at) for text, at in found["texts"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unread(name, error) from error


def _unread(name: str, why: object) -> IntegrityError:
    return IntegrityError(
        f"{name} cannot be read ({why}): restore it, or remove it; what rows mean is then what the other one says, "
        "beside the log or in the lake, or the champion's bundle"
    )
