"""Why logged scores do not come out again: by the bundle, the encoder, the runtime, or what stands in the log.

First what is known to be about is tried in the place of each part: another version, another file of the bundle, the
copy that Triton was given, another version's encoding. What gives the logged scores names itself. Then the holdout's
kept scores tell (witness.py) whether the version is what it was; where it is not, a plain encoder and a plain runtime
(reference.py) take the place of the fast ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pipelines import ledger, runtime
from pipelines.contracts import Window
from pipelines.data import log as prediction_log
from pipelines.errors import ConfigError, DataError, PerennialError
from pipelines.files import file_sha256
from pipelines.parts import cut
from pipelines.rescoring import reference
from pipelines.rescoring.replay import Replayed
from pipelines.rescoring.versions import Version, beside, columns, load, logged, scores
from pipelines.rescoring.witness import TOLERANCE, Witness, witness
from pipelines.runtime import MODEL
from pipelines.settings import Settings

Cause = Literal["artefact", "encoder", "runtime", "log"]
"""What is wrong: the bundle's files, the code that encodes, what computed (here or in Triton), or the log's lines."""
EXPLAINED = 0.9
"""The share of the rows that differ which something must give again to be named as what answered them."""
MOST = 0.5
"""The share of a version's rows from which on it is no single line that was changed."""
PLAIN_ROWS, PLAIN_TEXTS = 64, 4
"""Rows that plain encoder and runtime are given."""
Scores = NDArray[np.float64]


class Problem(NamedTuple):
    """What is wrong with a version's answers (None: with the log itself), and with how many rows."""

    cause: Cause
    version: int | None
    rows: int
    told: str


class _Other(NamedTuple):
    """What may have answered in a version's place: how it is called, how it scores, and whose mistake that would be.

    ``kept`` is the cause where the version itself is what it was, ``changed`` where it is not.
    """

    name: str
    score: Callable[[pl.DataFrame], Scores]
    kept: Cause
    changed: Cause


def problems(settings: Settings, case: str, replayed: Iterable[Replayed], tolerance: float) -> list[Problem]:
    """What is wrong with versions whose scores did not all come out again."""
    found: list[Problem] = []
    for one in replayed:
        if one.sound:
            continue
        if one.why is not None:
            found.append(Problem(_cause_of(one.why), one.number, one.unfit, str(one.why)))
        if one.examples:
            found.append(_of_scores(settings, case, one, tolerance))
    return found


def _cause_of(error: PerennialError) -> Cause:
    """Whose mistake an error is: a row that cannot be encoded, or that names nobody, is one of the log."""
    return "log" if isinstance(error, DataError | ConfigError) else "artefact"


def _of_scores(settings: Settings, case: str, one: Replayed, tolerance: float) -> Problem:
    version = one.version
    assert version is not None
    rows = pl.concat(one.examples, how="diagonal_relaxed")
    wrong = one.differ + one.contradict
    told = f"{wrong:,} of {one.rows:,} scores of version {one.number} differ, by up to {one.largest:.2g}"
    if not one.differ:
        return Problem(
            "log",
            one.number,
            wrong,
            f"{wrong:,} rows of version {one.number} name another decision than their own score gives, e.g. "
            f"{rows['id'][0]}: these lines of the log were changed",
        )
    kept = witness(version)
    is_same = None if kept is None else _gives(lambda given: scores(version, given), kept)
    for other in _others(settings, case, version):
        with suppress(PerennialError):
            if _share(other.score(rows), rows, version, tolerance) < EXPLAINED:
                continue
            cause = other.kept if is_same in {True, None} else other.changed
            if other.name == _STAGED and is_same and kept is not None and _gives(other.score, kept):
                cause = "artefact"  # what served is what was judged, to the holdout's rows
            why = f"{other.name} gives them"
            if cause == "log":
                why, cause = f"{other.name} gives them, and the lines are others than were compacted", "log"
                if not _unlike_lake(settings, case, rows):
                    why, cause = f"{other.name} gives them: it answered in its place", "runtime"
            if cause == "artefact":
                why += _whose(settings, case, version)
            return Problem(cause, one.number, wrong, f"{told}: {why}; {_mend(cause, version)}")
    if is_same is False:
        assert kept is not None
        cause, what = _part(version, kept)
        if cause == "artefact":
            what += _whose(settings, case, version)
        return Problem(cause, one.number, wrong, f"{told}: {what}; {_mend(cause, version)}")
    return _unexplained(settings, case, one, rows, told, is_same=is_same)


def _unexplained(
    settings: Settings, case: str, one: Replayed, rows: pl.DataFrame, told: str, *, is_same: bool | None
) -> Problem:
    """Of a version that is what it was when it was judged, as far as that can be told."""
    version = one.version
    assert version is not None
    same = "its holdout still comes out as it was judged" if is_same else "its holdout is gone, which would tell more"
    changed = _unlike_lake(settings, case, rows)
    wrong = one.differ + one.contradict
    if changed:
        why = f"{same}, and {len(changed)} of the lines are others than were compacted, e.g. {changed[0]}"
        return Problem("log", one.number, wrong, f"{told}: {why}; {_mend('log', version)}")
    if one.differ < MOST * one.rows:
        why = f"{same}: the lines do not hold what was answered, e.g. {rows['id'][0]}"
        return Problem("log", one.number, wrong, f"{told}: {why}; {_mend('log', version)}")
    received: list[datetime] = rows["received_at"].sort().to_list()
    why = f"{same}: something else answered in its place, as in what was received at {received[0].isoformat()}"
    cause: Cause = "runtime" if is_same else "artefact"
    return Problem(cause, one.number, wrong, f"{told}: {why}; {_mend(cause, version)}")


_STAGED = "the copy in Triton's model repository"


def _others(settings: Settings, case: str, version: Version) -> Iterator[_Other]:
    """What is known to be about, and could have answered in the version's place."""
    staged = settings.model_repository / case / str(version.number)
    if (staged / MODEL).exists() and file_sha256(staged / MODEL) != file_sha256(version.folder / MODEL):
        yield _Other(_STAGED, lambda rows: _with_model(version, rows, staged), "runtime", "artefact")
    for path in sorted(version.folder.glob("*.onnx")):
        if path.name != MODEL:
            yield _Other(
                f"{path.name} of its bundle",
                lambda rows, name=path.name: _with_model(version, rows, version.folder, name),  # type: ignore[misc]
                "runtime",
                "artefact",
            )
    for other in _versions(settings, case, version):
        yield _Other(
            f"version {other.number} as a whole",
            lambda rows, other=other: scores(other, rows),  # type: ignore[misc]
            "log",
            "artefact",
        )
        if other.fields.inputs == version.fields.inputs:
            yield _Other(
                f"its model with the encoding of version {other.number}",
                lambda rows, other=other: _with_encoding(version, other, rows),  # type: ignore[misc]
                "encoder",
                "artefact",
            )


def _versions(settings: Settings, case: str, version: Version) -> Iterator[Version]:
    """The other versions that were ever released."""
    for number in sorted({release.champion for release in ledger.releases(settings.ledger, case)} - {version.number}):
        with suppress(PerennialError):
            yield load(settings, case, number)


def _whose(settings: Settings, case: str, version: Version) -> str:
    """Which other version the model of a bundle is that of, where it is one's."""
    own = file_sha256(version.folder / MODEL)
    for other in _versions(settings, case, version):
        if file_sha256(other.folder / MODEL) == own:
            return f", and its {MODEL} is that of version {other.number}"
    return ""


def _with_model(version: Version, rows: pl.DataFrame, folder: Path, model: str = MODEL) -> Scores:
    return _inferred(version, version.model.encode(columns(version.fields, rows)), folder, model)


def _with_encoding(version: Version, other: Version, rows: pl.DataFrame) -> Scores:
    return _inferred(version, other.model.encode(columns(other.fields, rows)), version.folder)


def _inferred(version: Version, tensors: Any, folder: Path, model: str = MODEL) -> Scores:
    found = np.empty((len(next(iter(tensors.values()))), version.fields.outputs))
    for part in cut(tensors, version.model.longest):
        answers = runtime.score(folder, part.tensors, model=model)
        found[np.asarray(part.rows)] = answers.reshape(len(part.rows), -1)
    return found


def _apart(found: Scores, told: Scores, version: Version) -> Scores:
    """The differences ``[n]`` of scores in the measure of a replay."""
    apart: Scores = np.abs(beside(found, told) - told).max(axis=1)
    return apart if version.fields.number is None else apart / max(1.0, float(np.abs(told).max()))


def _share(found: Scores, rows: pl.DataFrame, version: Version, tolerance: float) -> float:
    """The share of the rows whose logged scores are ``found``."""
    return float((_apart(found, logged(rows, version.fields.outputs), version) <= tolerance).mean())


def _gives(score: Callable[[pl.DataFrame], Scores], kept: Witness) -> bool:
    """Whether something gives the kept scores again."""
    try:
        found = score(kept.rows)
    except PerennialError:
        return False
    unit = max(1.0, float(np.abs(kept.scores).max()))
    return found.shape == kept.scores.shape and bool((np.abs(found - kept.scores) <= TOLERANCE * unit).all())


def _part(version: Version, kept: Witness) -> tuple[Cause, str]:
    """Which part of a version is not what it was: its encoder, its runtime, else its files."""
    few = PLAIN_ROWS if version.fields.text is None else PLAIN_TEXTS
    rows = kept.rows.head(few)
    plain = reference.tensors(version.folder, version.fields, rows)
    own = version.model.encode(columns(version.fields, rows))
    for name, tensor in plain.items():
        if tensor.shape != own[name].shape or not np.array_equal(tensor, own[name], equal_nan=True):
            return "encoder", f"the encoder gives other {name} than its bundle's files say, so its holdout differs too"
    with suppress(Exception):  # a graph that onnx's evaluator does not know says nothing
        expected = reference.scores(version.folder, plain)
        found = _inferred(version, own, version.folder)
        unit = max(1.0, float(np.abs(expected).max()))
        if not (np.abs(found - expected) <= TOLERANCE * unit).all():
            return "runtime", "ONNX Runtime here computes something else than the model's graph says"
    return "artefact", "its holdout does not come out as it was judged, and encoder and runtime do what its files say"


def _unlike_lake(settings: Settings, case: str, rows: pl.DataFrame) -> list[str]:
    """The ids of those rows whose line is another one in the lake, to which it was compacted once."""
    times: list[datetime] = rows["event_time"].sort().to_list()
    window = Window(start=times[0], end=times[-1] + timedelta(microseconds=1))
    wanted = pl.col("request_id").is_in(rows["request_id"].implode())
    try:
        lake = prediction_log.lines(
            settings, case, "predictions", prediction_log.near(settings, case, window), lambda scan: scan.filter(wanted)
        )
    except PerennialError:
        return []
    same = [name for name in rows.columns if name in lake.columns and name not in {"traceparent", "rescored"}]
    joined = rows.select(same).join(lake.select(same), on=same, how="anti", nulls_equal=True)
    return [] if lake.is_empty() else joined["id"].to_list()


def _mend(cause: Cause, version: Version) -> str:
    """What to do."""
    said: dict[Cause, str] = {
        "artefact": f"restore {version.folder} from a backup, and see what changed it",
        "encoder": "go back to the code that it was judged with, or raise the case's version by a retraining",
        "runtime": "run `reconcile`, which gives Triton the bundle's own file again, and compare the installed "
        "packages with requirements.lock",
        "log": "restore these segments from a backup: what was trained on them since learned from changed rows",
    }
    return said[cause]
