"""`python -m embedded.traffic`: a trickle of live traffic for the cases that follow today's clock.

Rows of the case's own stream go through the gateway when their event time has come, labels when theirs
has. On a first start the last whole days are sent too, so that the next drift run has something to see.
Every row carries its id as prediction_id: whatever is sent twice is one row.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from pipelines import installation
from pipelines.case_files import outside
from pipelines.cases import Case, load_fields, part
from pipelines.cases.surveying import survey
from pipelines.contracts import Window
from pipelines.errors import ConfigError, PerennialError, Unavailable
from pipelines.faults import of_case
from pipelines.fields import Fields, row_sent
from pipelines.files import write_atomic
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings

if TYPE_CHECKING:
    import polars as pl

BACKFILL_DAYS = 14
"""Whole days sent on a first start: enough that a week's labels are due with the week's delay of `loans`."""
BATCH, BATCH_TEXTS = 200, 40
"""Rows of a request; a transformer on one core scores some 50 texts a second: a batch of them is a second or so."""
PAUSE_SECONDS = 10.0
_TICK = timedelta(microseconds=1)
_WAIT = (401, 404, 413, 429, 503, 507)
"""Answers that can be otherwise next time: no champion yet, Triton away, a full disk, a key being changed."""

log = logging.getLogger("embedded.traffic")


@dataclass(frozen=True)
class Place:
    """How far a case's stream has been sent.

    Rows with event time in ``[since, rows)``, and their labels that arrived before ``labels``.
    """

    since: datetime
    rows: datetime
    labels: datetime


def live_cases(found: Sequence[Case] | None = None, begun: Collection[str] = ()) -> list[str]:
    """The cases that follow today's clock and can work.

    Those that come with an installed package are examples: they are set going where somebody has none of their own.
    Those that have ``begun`` before go on.
    """
    cases = survey() if found is None else found
    live = [case.name for case in cases if not case.problem and case.params is not None and case.params.schedule.live]
    if installation.CHECKOUT:
        return live
    if not any(map(outside, live)):
        return live
    return [case for case in live if outside(case) or case in begun]


def place_file(settings: Settings, case: str) -> Path:
    """Where a case's place is kept."""
    return settings.root / "traffic" / f"{case}.json"


def read_place(settings: Settings, case: str, now: datetime) -> Place:
    """Where the case's stream goes on; on a first start, midnight some days ago."""
    try:
        found = json.loads(place_file(settings, case).read_text())
        return Place(**{name: datetime.fromisoformat(found[name]) for name in ("since", "rows", "labels")})
    except FileNotFoundError:
        start = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=BACKFILL_DAYS)
        return Place(start, start, start)


def advance(settings: Settings, gateway: httpx.Client, case: str, now: datetime) -> tuple[int, int]:
    """Send everything of one case that is due at ``now``; returns the numbers of rows and labels that the gateway took.

    The place is kept after every batch. Raises Unavailable if the gateway cannot answer now: call again later.
    """
    params = load_params(case)
    fields = load_fields(case)
    stream = part(case, "source")
    source = stream.resolve(settings, params)
    place = read_place(settings, case, now)
    rows = labels = 0
    most = BATCH if fields.text is None else BATCH_TEXTS
    for batch, end in _batches(stream.rows(source, Window(start=place.rows, end=now), params), "event_time", now, most):
        items = [prediction_sent(fields, row) for row in batch.iter_rows(named=True)]
        rows += _post(gateway, f"/v1/cases/{case}/predict", "rows", items)
        place = _keep(settings, case, Place(place.since, end, place.labels))
    delay = timedelta(days=params.label_delay_days)
    due = Window(start=max(place.since, place.labels - delay), end=max(place.since, now - delay))
    known = stream.rows(source, due, params).drop_nulls(fields.label)
    for batch, end in _batches(known, "label_time", now):
        items = [
            {
                "prediction_id": row["id"],
                "label": label_sent(fields, row[fields.label]),
                "event_time": row["label_time"].isoformat(),
            }
            for row in batch.iter_rows(named=True)
        ]
        labels += _post(gateway, f"/v1/cases/{case}/labels", "labels", items)
        place = _keep(settings, case, Place(place.since, place.rows, end))
    return rows, labels


def caught_up(settings: Settings, case: str, until: datetime) -> bool:
    """Whether every row and every label that was due before ``until`` has been sent."""
    if not place_file(settings, case).exists():
        return False
    params = load_params(case)
    stream = part(case, "source")
    place = read_place(settings, case, until)
    source = stream.resolve(settings, params)
    delay = timedelta(days=params.label_delay_days)
    left = [(place.rows, until), (max(place.since, place.labels - delay), until - delay)]
    return all(
        start >= end or stream.rows(source, Window(start=start, end=end), params).is_empty() for start, end in left
    )


def prediction_sent(fields: Fields, row: Mapping[str, Any]) -> dict[str, Any]:
    """A canonical row as the gateway takes it, with its id and its time."""
    return {"prediction_id": row["id"], "event_time": row["event_time"].isoformat(), **row_sent(fields, row)}


def label_sent(fields: Fields, label: float) -> float | str:
    """A stored label as the gateway takes it: 0 or 1, a number, or the name of the class at this position."""
    if fields.classes:
        return fields.classes[int(label)]
    return label


def _batches(
    frame: pl.DataFrame, moment: str, now: datetime, most: int = BATCH
) -> Iterator[tuple[pl.DataFrame, datetime]]:
    """Batches of a frame sorted by ``moment``, each with the time up to which everything is sent once it is."""
    for start in range(0, frame.height, most):
        batch = frame[start : start + most]
        last = batch[moment][-1]
        tied = start + most < frame.height and frame[moment][start + most] == last
        yield batch, last if tied else min(last + _TICK, now)


def _keep(settings: Settings, case: str, place: Place) -> Place:
    values = {"since": place.since.isoformat(), "rows": place.rows.isoformat(), "labels": place.labels.isoformat()}
    write_atomic(place_file(settings, case), json.dumps(values).encode())
    return place


def _post(gateway: httpx.Client, path: str, name: str, items: list[dict[str, Any]]) -> int:
    """Send one batch; returns how many items were taken: none of them if the gateway says that it never will."""
    try:
        answer = gateway.post(path, json={name: items})
    except httpx.TransportError as error:
        raise Unavailable(f"the gateway does not answer: {error}") from error
    if answer.status_code == httpx.codes.OK:
        return len(items)
    text = f"{path} answered {answer.status_code}: {answer.text[:300]}"
    if answer.status_code in _WAIT or answer.is_server_error:
        raise Unavailable(text)
    log.error("%d %s left out: %s", len(items), name, text)
    return 0


def run(settings: Settings) -> None:
    """Send what is due, for ever; what is wrong with a case is said once, and costs the others nothing."""
    said: dict[str, str] = {}
    live: list[str] | None = None
    while True:
        begun = [path.stem for path in place_file(settings, "any").parent.glob("*.json")]
        if live != (live := live_cases(begun=begun)):
            log.info("live: %s", ", ".join(live) or "no case")
        for case in live:
            try:
                with _client(settings) as gateway:
                    rows, labels = advance(settings, gateway, case, datetime.now(UTC))
                if said.pop(case, ""):
                    log.info("%s: sending again", case)
                if rows or labels:
                    log.info("%s: %d row(s), %d label(s) sent", case, rows, labels)
            except Exception as error:
                told = of_case(error) or error
                if not isinstance(told, PerennialError | OSError):
                    raise
                if said.get(case) != str(told):
                    log.warning("%s: waiting: %s", case, told)
                said[case] = str(told)
        time.sleep(PAUSE_SECONDS)


def _client(settings: Settings) -> httpx.Client:
    key = settings.key_file.read_text().strip()
    return httpx.Client(
        base_url=settings.address("gateway_url"), headers={"X-API-Key": key}, timeout=30, trust_env=False
    )


def main() -> None:
    """Run until SIGTERM or Ctrl-C. What was sent is kept batch by batch, so that there is nothing to finish."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        run(read_settings())
    except ConfigError as error:
        print(f"traffic: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
