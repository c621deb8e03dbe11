"""Where the bank rows come from: a Parquet file with dates, or the original CSV of UCI data set 222."""

from __future__ import annotations

import io
import logging
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import polars as pl

from pipelines.cases.bank.calendar import event_times
from pipelines.cases.bank.schema import FIELDS
from pipelines.cases.sources import Source, canonical, checked_sha256, places
from pipelines.contracts import Window
from pipelines.errors import DataError, IntegrityError
from pipelines.files import write_atomic
from pipelines.params import Params
from pipelines.settings import Settings

PARQUET = "bank_marketing.parquet"
PARQUET_SHA256 = "cbe5f13ebe19de3c11c14f7060fdef0b09183b2c32ba2db7f4223ee1a315f15a"
CSV = "bank-additional-full.csv"
CSV_SHA256 = "74adfc578bf77a7ff4bb1ba4a9f8709d9e3c6907342959c2c8416847e0afb4d8"
URL = "https://archive.ics.uci.edu/static/public/222/bank+marketing.zip"
TIMEOUT_SECONDS = 10.0
MAX_BYTES = 20 * 2**20
NOTICE = (
    "Bank Marketing, UCI Machine Learning Repository 222, doi:10.24432/C5K306, CC BY 4.0. "
    "S. Moro, P. Cortez, P. Rita: A Data-Driven Approach to Predict the Success of Bank Telemarketing, "
    "Decision Support Systems 62:22-31, 2014, doi:10.1016/j.dss.2014.03.001. Changed: dates and times were laid on the "
    "calendar, rows after 2010-03 and the call's duration left out."
)

log = logging.getLogger(__name__)


def resolve(settings: Settings, params: Params) -> Source:  # noqa: ARG001 - one signature for all cases
    """Find the data: PERENNIAL_DATA_DIR, ``../shared/data``, the cache in the state folder, a download; in this order.

    Raises IntegrityError if a file found is not the one expected, DataError if there is none and the
    download fails.
    """
    for folder, why in places(settings):
        for name, expected in ((PARQUET, PARQUET_SHA256), (CSV, CSV_SHA256)):
            if (folder / name).exists():
                return _source(folder / name, expected, f"{folder / name}: {why}")
    cache = settings.root / "data"
    write_atomic(cache / CSV, _download())
    return _source(cache / CSV, CSV_SHA256, f"{URL}: downloaded, as no folder held {PARQUET}")


def _source(path: Path, expected: str, why: str) -> Source:
    return Source(
        name="bank_marketing", kind="real", why=why, notice=NOTICE, path=path, sha256=checked_sha256(path, expected)
    )


def _download() -> bytes:
    log.info("downloading %s", URL)
    request = urllib.request.Request(URL, headers={"User-Agent": "perennial/0.1 (one request, cached)"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            outer = answer.read(MAX_BYTES)
    except (OSError, urllib.error.URLError) as error:
        raise DataError(
            f"no {PARQUET} in any folder, and {URL} cannot be reached ({error}): "
            "set PERENNIAL_DATA_DIR to a folder that holds it"
        ) from error
    return unpack(outer)


def unpack(outer: bytes) -> bytes:
    """The CSV's bytes out of UCI's zip in a zip; raises IntegrityError if there is no such file in it."""
    try:
        with (
            zipfile.ZipFile(io.BytesIO(outer)) as archive,
            zipfile.ZipFile(io.BytesIO(archive.read("bank-additional.zip"))) as inner,
        ):
            return inner.read(f"bank-additional/{CSV}")
    except (zipfile.BadZipFile, KeyError) as error:
        raise IntegrityError(
            f"{URL} is not the expected archive ({error}): fetch {CSV} by hand into a folder and set PERENNIAL_DATA_DIR"
        ) from error


def rows(source: Source, window: Window, params: Params) -> pl.DataFrame:
    """Canonical rows of ``window`` with their labels; the same from either file. The call's duration stays behind."""
    if source.path is None:
        raise DataError("the bank source has no file: resolve it first")
    try:
        if source.path.suffix == ".parquet":
            frame = pl.read_parquet(source.path, columns=["id", "event_time", *FIELDS.names, FIELDS.label])
        else:
            frame = _read_csv(source.path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{source.path} cannot be read ({error}): replace it") from error
    return canonical(frame, FIELDS, window, params)


def _read_csv(path: Path) -> pl.DataFrame:
    raw = pl.read_csv(path, separator=";", infer_schema_length=None)
    frame = raw.rename({name: name.replace(".", "_") for name in raw.columns}).rename(
        {"default": "credit_default", "y": FIELDS.label}
    )
    return frame.with_columns(
        event_times(frame),
        pl.format("bank-{}", pl.int_range(pl.len()).cast(pl.String).str.zfill(5)).alias("id"),
        (pl.col(FIELDS.label) == "yes").cast(pl.Int8),
    )
