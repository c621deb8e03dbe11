"""What a probe promised of a training before there was a candidate, and what the candidate then delivered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

from pipelines import storage
from pipelines.amounts import spread
from pipelines.contracts import EpisodeTrigger, Evidence, Instant, Interval, Trigger, Value
from pipelines.drift_report import read_report
from pipelines.moments import day


class Promise(Value):
    """What a probe said at ``as_of`` that a retraining would gain per row, beside its ``price``, both in the ``unit``.

    That is nats of log-loss, or of a number the squared unit. ``against`` says by which figure: held against a probe
    of what the champion was trained on (``past``), or against the champion's own answers.
    """

    as_of: Instant
    gain: Interval
    price: float
    against: Literal["past", "champion"]
    unit: str = "nats"


def drift_runs(run_dir: Path) -> Iterator[Path]:
    """What the drift step left in this run and in earlier ones of its case, newest first."""
    for folder in sorted(run_dir.parent.iterdir(), reverse=True):
        if folder.name <= run_dir.name and (folder / "drift" / storage.MANIFEST).exists():
            yield folder / "drift"


def promised(run_dir: Path, trigger: Trigger, champion: int | None) -> Promise | None:
    """What was promised of the training in ``run_dir``, whose opponent is the version ``champion`` (None: no model).

    Where a drift run asked for the training it is that run's figure, else the newest one from before. None where that
    run is gone, measured nothing, or measured another champion.
    """
    asked = trigger in get_args(EpisodeTrigger)
    folder = next((one for one in drift_runs(run_dir) if asked or one.parent != run_dir), None)
    if champion is None or folder is None or (asked and folder.parent != run_dir):
        return None
    report = read_report(folder)
    found, gain = report.headroom, report.headroom.decides
    if gain is None or report.model_version != champion:
        return None
    as_of = storage.read_manifest(folder).as_of
    return Promise(as_of=as_of, gain=gain, price=found.price, against=found.against, unit=found.unit)


def delivered(evidence: Evidence) -> Interval | None:
    """By how many nats the candidate beat the champion on the holdout.

    None where there was no champion or no row, or where the gate decides by another metric than log-loss: its lift is
    not in the unit of a promise.
    """
    return evidence.lift if evidence.opponent == "champion" and evidence.metric == "log_loss" else None


def told(promise: Promise | None, evidence: Evidence) -> str:
    """What was promised and what came, as a sentence; ``evidence`` is the verdict's.

    >>> lift = Interval(value=0.06, low=0.03, high=0.09)
    >>> seen = Evidence(metric="log_loss", n=512, positives=40, opponent="champion", lift=lift)
    >>> told(None, seen)
    'No gain was promised: no probe had measured one over this champion.'
    """
    if evidence.opponent != "champion":
        return "No gain was promised: there was no champion to gain on."
    if promise is None:
        return "No gain was promised: no probe had measured one over this champion."
    over = "one of the champion's time" if promise.against == "past" else "the champion's answers"
    said = f"On {day(promise.as_of)} a probe promised {spread(promise.gain, promise.unit)} over {over}"
    if evidence.metric != "log_loss":
        return f"{said}; the gate decides by {evidence.metric}, so what was delivered is not known in {promise.unit}."
    came = delivered(evidence)
    if came is None:
        return f"{said}; what the candidate delivered is not known."
    return f"{said}; the candidate delivered {spread(came)} over the champion on {evidence.n:,} held-out rows."
