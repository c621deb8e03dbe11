"""A training's MLflow run while it trains, and when it fails. The register step completes that very run.

A run is found again by the training's key and its ``as_of``: a retry, a clear and a second try at once go on with
it. The record on disk is what counts: without MLflow a training goes on, and the run is made up for later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from pipelines.errors import PerennialError, Preempted
from pipelines.files import write_atomic
from pipelines.provenance import wall_time
from pipelines.registry import rest
from pipelines.registry.points import START, Curves, Place, Point, Tail, place_of
from pipelines.registry.usage import Meter, Usage, money
from pipelines.settings import Settings

TRAIN = "perennial.train"
AS_OF = "perennial.as_of"
SENT = "perennial.sent"
ERROR = "perennial.error"
FAILED_STEP = "perennial.error_step"
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"
CHILD = "perennial.candidate"
"""The name of what was compared, on its run below the training's."""
PAGE = "mlflow.page"
"""File in the working folder of a training: its run's page."""
SEND_SECONDS = 2.0
SAMPLE_SECONDS = 5.0
LEAVE_SECONDS = 7.0
BATCH = 900
"""MLflow takes up to this many points at once."""
MOST_CHILDREN = 1_000
"""Runs below one training's run that are looked for."""
PARAMS = 100
"""MLflow takes up to this many parameters at once."""
TEXT = 4000
"""MLflow keeps this much of a tag."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """What is known of a training before it starts. ``key`` is the train step's."""

    case: str
    as_of: datetime
    key: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    gpus: int = 0
    price_per_hour: float | None = None


@dataclass(frozen=True)
class Run:
    """An open run: its id, its start (ms since 1970), how far its curves are, and the parameters that it has."""

    id: str
    started: int
    sent: Place
    params: frozenset[str]
    page: str
    """Where MLflow's interface shows it, below its URL."""


@dataclass(frozen=True)
class Child:
    """What one training compared, as it is told: a run below the training's.

    With an ``error`` it failed, or was ended as others were better (``pruned``).
    """

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    error: str = ""
    pruned: bool = False

    @property
    def status(self) -> str:
        """MLflow's word for how it ended."""
        if self.pruned:
            return "KILLED"
        return "FAILED" if self.error else "FINISHED"


def find(settings: Settings, case: str, key: str, as_of: datetime) -> list[dict[str, Any]]:
    """The MLflow runs of a training as its REST interface gives them, oldest first."""
    try:
        home = rest.get(settings, "experiments/get-by-name", experiment_name=case)["experiment"]["experiment_id"]
    except rest.Refused as error:
        if error.code == rest.ABSENT:
            return []
        raise
    query = {
        "experiment_ids": [home],
        "filter": f"tags.`{TRAIN}` = '{key}' and tags.`{AS_OF}` = '{as_of.isoformat()}'",
        "order_by": ["attributes.start_time ASC", "attributes.run_id ASC"],
    }
    return list(rest.post(settings, "runs/search", query).get("runs", []))


def open_run(settings: Settings, training: Training) -> Run:
    """The training's run, made if there is none, and running. Of two that were made at once the older one stays."""
    runs = find(settings, training.case, training.key, training.as_of)
    if runs:
        rest.post(settings, "runs/update", {"run_id": runs[0]["info"]["run_id"], "status": "RUNNING"})
    else:
        runs = _make_run(settings, training)
    run = read(runs[0])
    missing = [
        {"key": name, "value": value[:TEXT]} for name, value in training.params.items() if name not in run.params
    ]
    for start in range(0, len(missing), PARAMS):
        rest.post(settings, "runs/log-batch", {"run_id": run.id, "params": missing[start : start + PARAMS]})
    return run


def _make_run(settings: Settings, training: Training) -> list[dict[str, Any]]:
    """Make the training's run; returns its runs, oldest first.

    If another try made one at once, the older of the two stays.
    """
    tags = {**training.tags, TRAIN: training.key, AS_OF: training.as_of.isoformat()}
    payload = {
        "experiment_id": experiment(settings, training.case),
        "run_name": f"{training.case} {training.as_of:%Y-%m-%d %H:%M}",
        "start_time": _now(),
        "tags": [{"key": name, "value": value} for name, value in tags.items()],
    }
    own = rest.post(settings, "runs/create", payload)["run"]["info"]["run_id"]
    runs = find(settings, training.case, training.key, training.as_of)
    if runs[0]["info"]["run_id"] != own:
        rest.post(settings, "runs/delete", {"run_id": own})
    return runs


def read(found: Mapping[str, Any]) -> Run:
    """A run as MLflow's REST interface gives it."""
    data = found.get("data", {})
    info = found["info"]
    tags = {tag["key"]: tag["value"] for tag in data.get("tags", [])}
    step, _, validated = tags.get(SENT, "").partition(".")
    sent = START
    if step.isdigit() and validated.isdigit():
        sent = (int(step), int(validated))
    return Run(
        id=info["run_id"],
        started=int(info["start_time"]),
        sent=sent,
        params=frozenset(param["key"] for param in data.get("params", [])),
        page=f"#/experiments/{info['experiment_id']}/runs/{info['run_id']}",
    )


def send(settings: Settings, run: Run, points: Iterable[Point], sent: Place) -> None:
    """Add points to a run's curves, and remember in a tag how far they are.

    A point keeps its time, so that sending it again changes nothing.
    """
    values = [
        {"key": p.name, "value": p.value, "step": p.step, "timestamp": run.started + int(p.seconds * 1000)}
        for p in points
    ]
    for start in range(0, len(values), BATCH):
        batch = {"run_id": run.id, "metrics": values[start : start + BATCH], "tags": list[dict[str, str]]()}
        is_last = start + BATCH >= len(values)
        if is_last:
            batch["tags"] = [{"key": SENT, "value": f"{sent[0]}.{sent[1]}"}]
        rest.post(settings, "runs/log-batch", batch)


def complete(settings: Settings, run: Run, metrics: Path) -> int:
    """Send what a finished training's curves still lack; returns the number of points."""
    curves = Curves()
    reached = run.sent
    missing: list[Point] = []
    for line in Tail(metrics).look():
        points = list(curves.points([line]))
        if place_of(line) > run.sent:
            missing += points
            reached = place_of(line)
    send(settings, run, missing, reached)
    return len(missing)


def child_of(told: Mapping[str, Any]) -> Child:
    """A child from what was kept of a candidate or a trial (pipelines/training/compare.py:Compared), as plain data."""
    values = {name: str(value) for name, value in told.get("values", {}).items()}
    params = {"candidate": told.get("candidate") or told["name"], "family": told["family"], **values}
    metrics = {"seconds": told["seconds"]}
    if told["value"] is not None:
        metrics[told["metric"]] = told["value"]
    return Child(told["name"], params, metrics, told["error"], told.get("pruned", False))


def tell_children(settings: Settings, case: str, as_of: datetime, parent: str, every: Iterable[Child]) -> None:
    """Make or complete the runs below a training's run ``parent`` that are missing or say something else."""
    home = experiment(settings, case)
    there = children(settings, home, parent)
    for child in every:
        own, status = there.get(child.name, (None, ""))
        if status != child.status:
            _tell_child(settings, case, as_of, home, parent, child, own)


def children(settings: Settings, home: str, parent: str) -> dict[str, tuple[str, str]]:
    """The runs below a training's run, as ``(id, status)`` by name; of two that were made at once the older one."""
    query = {
        "experiment_ids": [home],
        "filter": f"tags.`{PARENT}` = '{parent}'",
        "order_by": ["attributes.start_time DESC", "attributes.run_id DESC"],
        "max_results": MOST_CHILDREN,
    }
    found = {}
    for run in rest.post(settings, "runs/search", query).get("runs", []):
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", [])}
        if CHILD in tags:
            found[tags[CHILD]] = (str(run["info"]["run_id"]), str(run["info"]["status"]))
    return found


def _tell_child(
    settings: Settings, case: str, as_of: datetime, home: str, parent: str, child: Child, own: str | None
) -> None:
    """Make the run of what was compared, or complete the one that is ``own`` already."""
    now = _now()
    if own is None:
        tags = {PARENT: parent, CHILD: child.name, "perennial.case": case}
        payload = {
            "experiment_id": home,
            "run_name": child.name,
            "start_time": now - int(child.metrics.get("seconds", 0.0) * 1000),
            "tags": [{"key": name, "value": value} for name, value in tags.items()],
        }
        own = str(rest.post(settings, "runs/create", payload)["run"]["info"]["run_id"])
    moment = int(as_of.timestamp() * 1000)
    said = {
        "run_id": own,
        "metrics": [
            {"key": name, "value": value, "step": 0, "timestamp": moment} for name, value in child.metrics.items()
        ],
        "params": [{"key": name, "value": value[:TEXT]} for name, value in child.params.items()][:PARAMS],
        "tags": [{"key": name, "value": child.error[:TEXT]} for name in (ERROR, NOTE)],
    }
    rest.post(settings, "runs/log-batch", said)
    rest.post(settings, "runs/update", {"run_id": own, "status": child.status, "end_time": now})


class Recording:
    """One try of a training: a thread beside it (:meth:`beside`) sends its curves, and measures what it uses.

    The thread starts when the ranks have been forked, and lives in the process that waits for them. Whatever
    MLflow does or does not, nothing is raised.
    """

    def __init__(self, settings: Settings, training: Training, work: Path, *, on: bool) -> None:
        """Open the run before the training, if it is ``on``."""
        self.settings = settings
        self.training = training
        self.on = on
        self.tail = Tail(work / "metrics.jsonl")
        self.curves = Curves()
        self.pending: list[Point] = []
        self.run: Run | None = None
        self.sent = START
        self.quiet = False
        self.samples = 0
        self.spent: dict[str, Any] | None = None
        self.told: dict[str, str] = {}
        """The children that MLflow has, with their status."""
        self.meter = Meter(work, gpus=training.gpus > 0)
        self.done = threading.Event()
        self.lock = threading.Lock()
        self._carefully(self._open)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Follow the training for as long as the block lasts; a training that compares enters one after another."""
        self.done.clear()
        thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.done.set()
            thread.join(LEAVE_SECONDS)

    def tell(self, compared: Iterable[Child]) -> None:
        """Let MLflow have a run for each of what was compared so far; those that it has already stay as they are."""
        every = list(compared)
        self._carefully(lambda: self._tell(every))

    def _tell(self, every: list[Child]) -> None:
        self._open()
        missing = [child for child in every if self.told.get(child.name) != child.status]
        if self.run is None or not missing:
            return
        tell_children(self.settings, self.training.case, self.training.as_of, self.run.id, missing)
        self.told |= {child.name: child.status for child in missing}

    def cost(self) -> dict[str, Any]:
        """What all tries used up to the first time that this is asked, as :func:`cost` says it."""
        if self.spent is None:
            self.meter.sample()
            self.spent = cost(self.meter.total(), self.training)
        return self.spent

    @property
    def page(self) -> str | None:
        """Where MLflow's interface shows the run, below its URL; None if there is none."""
        if self.run is None:
            return None
        return self.run.page

    def close(self, status: str, error: BaseException | None = None) -> None:
        """End the run: FINISHED, FAILED or KILLED, with the error and the last step that was done."""
        self._carefully(lambda: self._close(status, error))

    def _follow(self) -> None:
        sampled = float("-inf")
        while True:
            leaving = self.done.wait(SEND_SECONDS)
            if leaving or time.monotonic() - sampled >= SAMPLE_SECONDS:
                sampled = time.monotonic()
                self._carefully(self._measure)
            if leaving:
                return
            self._carefully(self._catch_up)

    def _open(self) -> None:
        if self.on and self.run is None:
            self.run = open_run(self.settings, self.training)
            self.sent = self.run.sent
            write_atomic(self.tail.path.with_name(PAGE), self.run.page.encode())
            log.info("MLflow run %s", self.run.id)

    def _catch_up(self) -> None:
        self._open()
        if self.run is None:
            return
        for line in self.tail.look():
            points = list(self.curves.points([line]))
            if place_of(line) > self.sent:
                self.pending += points
                self.sent = place_of(line)
        if self.pending:
            send(self.settings, self.run, self.pending, self.sent)
            self.pending.clear()

    def _measure(self) -> None:
        values = self.meter.sample()
        self.samples += 1
        if self.run is not None:
            metrics = [
                {"key": name, "value": value, "step": self.samples, "timestamp": _now()}
                for name, value in values.items()
            ]
            rest.post(self.settings, "runs/log-batch", {"run_id": self.run.id, "metrics": metrics})

    def _close(self, status: str, error: BaseException | None) -> None:
        self._catch_up()
        if self.run is None:
            return
        moment = int(self.training.as_of.timestamp() * 1000)
        spent = self.cost()
        metrics = [
            {"key": f"cost.{name}", "value": float(value), "step": spent["tries"], "timestamp": moment}
            for name, value in spent.items()
            if isinstance(value, int | float) and isfinite(value)
        ]
        # A try that goes well takes back what an earlier one said.
        tags = {ERROR: "", FAILED_STEP: "", NOTE: ""}
        if error is not None:
            said = f"{type(error).__name__}: {error}"
            tags = {ERROR: said, FAILED_STEP: str(self.sent[0]), NOTE: said}
        rest.post(
            self.settings,
            "runs/log-batch",
            {
                "run_id": self.run.id,
                "metrics": metrics,
                "tags": [{"key": name, "value": value[:TEXT]} for name, value in tags.items()],
            },
        )
        rest.post(self.settings, "runs/update", {"run_id": self.run.id, "status": status, "end_time": _now()})

    def _carefully(self, work: Any) -> None:
        try:
            with self.lock:
                work()
        except (PerennialError, OSError, KeyError, ValueError) as error:
            if not self.quiet:
                log.warning("the training goes on without MLflow, the register step completes its run: %s", error)
            self.quiet = True


@contextmanager
def recording(settings: Settings, training: Training, work: Path, *, on: bool = True) -> Iterator[Recording]:
    """Record what happens in the block as the training's run; its errors go on after they are recorded."""
    live = Recording(settings, training, work, on=on)
    try:
        yield live
    except BaseException as error:
        status = "FAILED"
        if isinstance(error, Preempted) or not isinstance(error, Exception):
            status = "KILLED"
        live.close(status, error)
        raise
    live.close("FINISHED")


def cost(usage: Usage, training: Training) -> dict[str, Any]:
    """What a training used, in hours and MB, and at a declared price in money."""
    return {
        "cpu_hours": round(usage.cpu_seconds / 3600, 6),
        "wall_hours": round(usage.wall_seconds / 3600, 6),
        "gpu_hours": round(training.gpus * usage.wall_seconds / 3600, 6),
        "peak_memory_mb": usage.peak_memory_mb,
        "tries": usage.tries,
        "price_per_hour": training.price_per_hour,
        "money": money(usage, training.price_per_hour, training.gpus),
    }


def experiment(settings: Settings, name: str) -> str:
    """The id of the experiment of this name, made if there is none."""
    try:
        return str(rest.post(settings, "experiments/create", {"name": name})["experiment_id"])
    except rest.Refused as error:
        if error.code != rest.PRESENT:
            raise
    return str(rest.get(settings, "experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])


def _now() -> int:
    return int(wall_time().timestamp() * 1000)
