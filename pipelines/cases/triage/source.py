"""Where the reports come from: a Parquet file, or a download from the National Vulnerability Database."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence

import polars as pl

from pipelines.cases.sources import Source, canonical, checked_sha256, places
from pipelines.cases.triage import nvd
from pipelines.cases.triage.schema import FIELDS
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError
from pipelines.files import file_sha256, write_atomic
from pipelines.params import Params
from pipelines.settings import Settings

PARQUET = "nvd_cve.parquet"
PARQUET_SHA256 = "a366f0a48f2d910bb93552dc8f86724c95112f3371eeb84d4d22e366aa5b4eb7"
DOWNLOADED = "nvd_api.parquet"
NOTICE = (
    "Derived from the National Vulnerability Database (NIST, public domain; changed: grouped label, cleaned "
    "whitespace, filtered). This product uses data from the NVD API but is not endorsed or certified by the NVD. "
    "Descriptions come from the CVE List: Copyright (c) 1999-2026, The MITRE Corporation. CVE and the CVE logo are "
    "registered trademarks of The MITRE Corporation. CVE Usage: MITRE hereby grants you a perpetual, worldwide, "
    "non-exclusive, no-charge, royalty-free, irrevocable copyright license to reproduce, prepare derivative works of, "
    "publicly display, publicly perform, sublicense, and distribute Common Vulnerabilities and Exposures (CVE(R)). "
    "Any copy you make for such purposes is authorized provided that you reproduce MITRE's copyright designation and "
    "this license in any such copy."
)

log = logging.getLogger(__name__)


def resolve(settings: Settings, params: Params) -> Source:
    """Find the data: PERENNIAL_DATA_DIR, ``../shared/data``, the cache in the state folder, a download; in this order.

    A download takes about four minutes, goes on where it was broken off, and holds today's labels: its
    sha256 is its own. Raises IntegrityError if a file found is not the one expected, DataError if there is
    none and the download fails.
    """
    for folder, why in places(settings):
        if (folder / PARQUET).exists():
            path = folder / PARQUET
            return Source("nvd_cve", "real", f"{path}: {why}", NOTICE, path, checked_sha256(path, PARQUET_SHA256))
    cache = settings.root / "data"
    path = cache / DOWNLOADED
    why = "kept from an earlier download"
    if not path.exists():
        since, until = params.period
        if until is None:
            raise ConfigError("triage: period has no end, so a download has none either: give one in params.yaml")
        buffer = io.BytesIO()
        try:
            nvd.download(Window(start=since, end=until), cache / "nvd").write_parquet(buffer)
        except DataError as error:
            raise DataError(f"no {PARQUET} in any folder, and no download: {error}") from error
        write_atomic(path, buffer.getvalue())
        why = f"downloaded from {nvd.URL}, as no folder held {PARQUET}"
    return Source("nvd_api", "real", f"{path}: {why}", NOTICE, path, file_sha256(path))


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window``: the text, and the team as its position among the classes."""
    return canonical(reports(source), FIELDS, window, params)


def reports(source: Source, more: Sequence[str] = ()) -> pl.DataFrame:
    """All reports of a source with ``id``, ``event_time``, ``text`` and ``team`` (its position), and columns ``more``.

    Of reports with the very same text the first one stays: a desk files the others as duplicates, and a text that is in
    the training rows and in the holdout too would be judged by memory.
    """
    if source.path is None:
        raise DataError("the triage source has no file: resolve it first")
    try:
        frame = pl.read_parquet(source.path, columns=["id", "event_time", *FIELDS.names, FIELDS.label, *more])
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source.path} cannot be read ({error}): replace it") from error
    strange = set(frame[FIELDS.label].unique()) - set(FIELDS.classes)
    if strange:
        raise DataError(f"{source.path} names the team {min(strange)!r}: the teams are {', '.join(FIELDS.classes)}")
    positions = {team: position for position, team in enumerate(FIELDS.classes)}
    first = frame.sort("event_time", "id").unique(FIELDS.names, keep="first", maintain_order=True)
    return first.with_columns(pl.col(FIELDS.label).replace_strict(positions, return_dtype=pl.Int8))
