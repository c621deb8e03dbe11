"""Reports from the API of the National Vulnerability Database (version 2.0), one stretch of days after the other.

See nvd.nist.gov/developers/vulnerabilities: a request spans at most 120 days and answers with at most 2,000
reports; without a key there may be 5 requests in 30 seconds. Every finished stretch is kept in a file, so a
download that was broken off goes on where it stopped.
"""

from __future__ import annotations

import io
import json
import logging
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from pipelines.cases.triage.teams import team_of
from pipelines.contracts import Window
from pipelines.errors import DataError, IntegrityError
from pipelines.files import write_atomic
from pipelines.text import normalise

URL = "https://services.nvd.nist.gov/rest/json/cves/2.0"
PAGE = 2_000
SPAN = timedelta(days=120)
PAUSE_SECONDS = 6.5
"""Between two requests: 5 in any 30 seconds, with some room."""
TIMEOUT_SECONDS = 60.0
TRIES = 3
MAX_BYTES = 256 * 2**20
SCHEMA = {
    "id": pl.String(),
    "event_time": pl.Datetime("us", "UTC"),
    "text": pl.String(),
    "team": pl.String(),
    "cwe": pl.String(),
    "cwe_all": pl.String(),
    "assigner": pl.String(),
}

Ask = Callable[[dict[str, str]], dict[str, Any]]

log = logging.getLogger(__name__)


def download(period: Window, folder: Path, ask: Ask | None = None) -> pl.DataFrame:
    """All usable reports published in ``period``, by time and id; finished stretches are kept in ``folder``.

    ``ask`` turns a request's parameters into the API's answer. Raises DataError if it cannot be reached.
    """
    frames = []
    for stretch in stretches(period):
        path = folder / f"{stretch.start:%Y%m%d}-{stretch.end:%Y%m%d}.parquet"
        # One of before a column was added is asked for again.
        if not path.exists() or pl.read_parquet_schema(path) != SCHEMA:
            log.info("asking %s for %s to %s", URL, stretch.start.date(), stretch.end.date())
            buffer = io.BytesIO()
            parse(_pages(stretch, ask or _ask)).write_parquet(buffer)
            write_atomic(path, buffer.getvalue())
        frames.append(pl.read_parquet(path))
    return pl.concat([pl.DataFrame(schema=SCHEMA), *frames]).unique("id", keep="first").sort("event_time", "id")


def stretches(period: Window) -> list[Window]:
    """``period`` cut into pieces that the API accepts."""
    pieces = []
    start = period.start
    while start < period.end:
        pieces.append(Window(start=start, end=min(start + SPAN, period.end)))
        start += SPAN
    return pieces


def _pages(stretch: Window, ask: Ask) -> Iterator[dict[str, Any]]:
    # The API's ends are inclusive, ours are not.
    last = stretch.end - timedelta(milliseconds=1)
    known = {
        "pubStartDate": f"{stretch.start:%Y-%m-%dT%H:%M:%S}.000",
        "pubEndDate": f"{last:%Y-%m-%dT%H:%M:%S}.999",
        "resultsPerPage": str(PAGE),
    }
    start = 0
    total = 1
    while start < total:
        answer = ask({**known, "startIndex": str(start)})
        try:
            total = int(answer["totalResults"])
            found = answer["vulnerabilities"]
            start += len(found)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{URL} answered in another form ({error!r}): "
                "the API has changed, set PERENNIAL_DATA_DIR to a folder with the data"
            ) from error
        if not found and start < total:
            raise IntegrityError(
                f"{URL} gave {start} of {total} reports and then none: run it again, finished stretches are kept"
            )
        yield from (item["cve"] for item in found)


def parse(reports: Iterator[dict[str, Any]]) -> pl.DataFrame:
    """Reports of the API as rows of :data:`SCHEMA`.

    Rejected ones, and those without a weakness or an English text, are left out. The first weakness decides the team:
    NVD's own come before those of others.
    """
    rows = []
    for report in reports:
        text = normalise(next((part["value"] for part in report.get("descriptions", []) if part["lang"] == "en"), ""))
        given = sorted(report.get("weaknesses", []), key=lambda weakness: weakness.get("source") != "nvd@nist.gov")
        found = (part["value"] for weakness in given for part in weakness["description"] if part["lang"] == "en")
        codes = list(dict.fromkeys(found))
        if not text or text.startswith("** RE") or report.get("vulnStatus") == "Rejected" or not codes:
            continue
        published = datetime.fromisoformat(report["published"]).replace(tzinfo=UTC)
        told = (text, team_of(codes[0]), codes[0], ",".join(codes), report.get("sourceIdentifier"))
        rows.append((report["id"], published, *told))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def _ask(parameters: dict[str, str]) -> dict[str, Any]:
    url = f"{URL}?{urllib.parse.urlencode(parameters, safe=':')}&noRejected"
    headers = {"User-Agent": "perennial/0.1 (five requests in 30 seconds, cached)"}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    for attempt in range(TRIES):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                found: dict[str, Any] = json.loads(answer.read(MAX_BYTES))
        except (TimeoutError, urllib.error.HTTPError) as error:
            reason = str(error)
            time.sleep(PAUSE_SECONDS * (1 + 2 * attempt))
        except (OSError, ValueError) as error:
            # No such host, no route, no JSON: waiting does not help.
            reason = str(error)
            break
        else:
            time.sleep(PAUSE_SECONDS)
            return found
    raise DataError(
        f"{URL} cannot be used ({reason}): run it again later, finished stretches are kept; "
        "or set PERENNIAL_DATA_DIR to a folder with the data"
    )
