"""False triggers and delay of the trigger headroom beside those of today's other rules, on worlds with a known truth.

A row is a point ``z`` of independent standard normals, its label is drawn from ``softmax(z A)``. A case sees ``z`` as
numbers, or as a text of words that each point one way. What moves, if anything does:

- *concept*: the weights turn by an angle, at once, so that a champion of the old ones loses ``JUMP`` nats;
- *slow*: they turn a little every window, so that it loses ``SLOPE`` nats more in each than in the one before;
- *covariate*: inputs move to where the champion has seen few rows and what they mean bends; the meaning stays.

The champion is a probe of its time, trained on as many rows as the newer probe. Windows are months of 30 days, labels
are all there when a window is judged. Every figure comes from the project's own functions: probe, gain, reference,
``compare()``, labels' tests and policy. After a trigger in stable traffic the policy starts anew with the same
champion.

Cells are kept in runs/bench-alarms/ until what makes them changes, so a run that was interrupted goes on.
`make bench-alarms [ARGS=--quick]`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.alarms.cells import upper
from benchmarks.alarms.traffic import DAYTIME, SESSION
from benchmarks.record import RESULTS, goal, record
from pipelines import measures
from pipelines.contracts import EpisodeTrigger
from pipelines.drift import policy
from pipelines.drift.evidence import DriftEvidence, LabelEvidence, PolicyState
from pipelines.drift.inputs.compare import compare
from pipelines.drift.labels import sequential
from pipelines.drift.labels.sequential import log_e_value, metric_drop
from pipelines.drift.profile.counts import profile_frame
from pipelines.drift.profile.spec import Spec, numbers
from pipelines.drift.reference import reference_profile
from pipelines.feature_names import SCORE
from pipelines.fields import SCORES, Fields, Numeric, Scale, Text
from pipelines.headroom import gain, probe
from pipelines.measures import design_effect, row_errors, row_log_loss
from pipelines.params import HeadroomParams
from pipelines.params_file import load_params

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Kind = Literal["table", "classes", "text"]
Traffic = Literal["iid", "diurnal", "sessions"]
Shift = Literal["none", "concept", "covariate", "slow"]

DIMENSIONS = 8
CLASSES = {"table": 2, "classes": 4, "text": 4}
WORDS, LENGTH = 400, 24
"""A text has so many words of so many; each points in one direction of ``z``, up or down."""
WEIGHT = 2.0
"""How far the logits spread: their standard deviation."""
JUMP, SLOPE = 0.1, 0.01
"""Nats that a champion of the old weights loses: at once, or more in every window."""
MOVED = 1.5
"""Standard deviations by which the first two inputs move."""
BEND = 2.0
"""What their sum adds to the first class's logit beyond 2, where 8% of the rows lie before they move."""
DAYS = 30
DAY_NOISE = 0.2
"""Standard deviation of a day's own term in every class's logit, where days are not alike."""
STREAM = 30
"""Windows after a shift that are looked at."""
SIZES = (200, 1_000, 10_000)
DEPLOYMENTS, WINDOWS = 10, 40
"""Per cell of stable traffic; of a shift as many deployments of STREAM windows."""
MAX_FALSE = 1e-3
WATCHED: tuple[EpisodeTrigger, ...] = ("headroom", "performance", "drift")
PARAMS = load_params("bank").drift.model_copy(update={"ignore": (), "new_data": None})
FOLDER = Path("runs") / "bench-alarms"
START = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Cell:
    """One line of the table: so many ``rows`` per window."""

    kind: Kind
    traffic: Traffic
    rows: int
    shift: Shift = "none"

    @property
    def learned(self) -> int:
        """The rows that champion and probe learn from: three windows, within what a probe may read."""
        return min(max(1_000, 3 * self.rows), HeadroomParams().max_rows)

    @property
    def name(self) -> str:
        """As the file is called."""
        return f"headroom-{self.kind}-{self.traffic}-{self.rows}-{self.shift}"


@dataclass(frozen=True)
class Drawn:
    """Rows of a stretch of time: what the case sees, label and UTC day ``[n]``."""

    frame: pl.DataFrame
    label: Ints
    days: Ints

    def join(self, after: Drawn) -> Drawn:
        """Both, one after the other."""
        return Drawn(
            pl.concat([self.frame, after.frame]),
            np.concatenate([self.label, after.label]),
            np.concatenate([self.days, after.days]),
        )

    def newest(self, rows: int) -> Drawn:
        """The last ``rows`` rows."""
        return Drawn(self.frame.tail(rows), self.label[-rows:], self.days[-rows:])


def fields_of(kind: Kind) -> Fields:
    """What a case of this kind declares."""
    classes = () if kind == "table" else tuple(f"class {number}" for number in range(CLASSES[kind]))
    seen = (Text("words"),) if kind == "text" else tuple(Numeric(f"z{number}") for number in range(DIMENSIONS))
    return Fields("alarms", seen, "label", classes=classes)


# --- worlds -------------------------------------------------------------------------------------


class World:
    """One truth: two sets of weights ``[DIMENSIONS, K]`` that the meaning of inputs turns between."""

    def __init__(self, kind: Kind, rng: np.random.Generator) -> None:
        self.kind = kind
        self.weights = rng.standard_normal((2, DIMENSIONS, CLASSES[kind])) * WEIGHT / np.sqrt(DIMENSIONS)
        self.angles = np.linspace(0, np.pi / 2, 46)
        sample = rng.standard_normal((4_000, DIMENSIONS))
        self.losses = np.maximum.accumulate([self._lost(sample, angle) for angle in self.angles])

    def _logits(self, z: Floats, angle: float) -> Floats:
        straight: Floats = z @ (np.cos(angle) * self.weights[0] + np.sin(angle) * self.weights[1])
        straight[:, 0] += BEND * np.maximum(z[:, 0] + z[:, 1] - 2, 0)
        return straight

    def _lost(self, sample: Floats, angle: float) -> float:
        """Kullback and Leibler's divergence of the old meaning from the turned one: nats per row."""
        then, now = (_log_softmax(self._logits(sample, turned)) for turned in (0.0, angle))
        return float((np.exp(now) * (now - then)).sum(1).mean())

    def angle(self, nats: float) -> float:
        """How far the weights must turn for a champion of the old ones to lose so much."""
        return float(np.interp(nats, self.losses, self.angles))

    def draw(self, rng: np.random.Generator, cell: Cell, window: int) -> Drawn:
        """Window number ``window``, 0 being the first one with the shift, earlier ones without."""
        days, owner = _when(rng, cell)
        z = rng.standard_normal((int(owner.max()) + 1, DIMENSIONS))[owner]
        if cell.traffic == "diurnal":
            # Hours differ in who comes, and no two days are alike in what comes of it.
            z[:, 0] += 0.5 * np.sin(2 * np.pi * rng.choice(24, len(z), p=DAYTIME / DAYTIME.sum()) / 24)
        angle = 0.0
        if window >= 0 and cell.shift == "covariate":
            z[:, :2] += MOVED
        if window >= 0 and cell.shift in {"concept", "slow"}:
            angle = self.angle(JUMP if cell.shift == "concept" else SLOPE * (window + 1))
        logits = self._logits(z, angle)
        if cell.traffic != "iid":
            logits = logits + DAY_NOISE * rng.standard_normal((DAYS, logits.shape[1]))[days]
        chosen = _log_softmax(logits) + rng.gumbel(size=logits.shape)[owner if cell.traffic == "sessions" else ...]
        label = chosen.argmax(1)
        when = [START + timedelta(days=DAYS * window + int(day)) for day in days]
        frame = self._seen(rng, z).with_columns(event_time=pl.Series(when), label=pl.Series(label, dtype=pl.Int8))
        return Drawn(frame, label, days + DAYS * window)

    def _seen(self, rng: np.random.Generator, z: Floats) -> pl.DataFrame:
        if self.kind != "text":
            return pl.DataFrame({f"z{number}": z[:, number] for number in range(DIMENSIONS)})
        # A word is the likelier, the further z lies its way: of 2 x 8 ways with equally many words each.
        pull = np.concatenate([z, -z], 1)
        ways = (pull[:, None, :] + rng.gumbel(size=(len(z), LENGTH, 2 * DIMENSIONS))).argmax(2)
        words = ways + 2 * DIMENSIONS * rng.integers(0, WORDS // (2 * DIMENSIONS), ways.shape)
        return pl.DataFrame({"words": [" ".join(f"w{word}" for word in text) for text in words]})


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return found


def _when(rng: np.random.Generator, cell: Cell) -> tuple[Ints, Ints]:
    """The day ``[n]`` of each row, in order, and whose row it is ``[n]``: its own, or a session's."""
    if cell.traffic != "sessions":
        return np.sort(rng.integers(0, DAYS, cell.rows)), np.arange(cell.rows)
    lengths = rng.integers(SESSION[0], SESSION[1] + 1, cell.rows // SESSION[0] + 1)
    owner = np.repeat(np.arange(len(lengths)), lengths)[: cell.rows]
    return np.sort(rng.integers(0, DAYS, len(lengths)))[owner], owner


# --- judging ------------------------------------------------------------------------------------


class Deployment:
    """A champion with what each of its windows is judged by."""

    def __init__(self, cell: Cell, number: int) -> None:
        self.cell = cell
        self.rng = np.random.default_rng([number, cell.rows, *cell.name.encode()])
        self.world = World(cell.kind, self.rng)
        self.fields = fields_of(cell.kind)
        self.family = probe.family_of(self.fields, "auto")
        held = self.world.draw(self.rng, cell, -1)
        self.past = self._before(-(-cell.learned // cell.rows)).newest(cell.learned)
        self.champion = probe.fit(self.past.frame, self.fields, self.family)
        scales = dict.fromkeys(numbers(self.fields), Scale(0.0, 0.741301))  # of a standard normal, as freeze() gives it
        self.spec = Spec("alarms", scales | {SCORE: Scale(0.0, 1.0)})
        self.reference = reference_profile(
            self.past.frame, self.champion(held.frame), self.fields, self.spec, held.frame
        )

    def _before(self, windows: int) -> Drawn:
        drawn = self.world.draw(self.rng, self.cell, -windows)
        for window in range(1 - windows, 0):
            drawn = drawn.join(self.world.draw(self.rng, self.cell, window))
        return drawn

    def windows(self, count: int, price: float) -> Iterator[DriftEvidence]:
        """The evidence of ``count`` windows one after the other."""
        learned = self.past
        for number in range(count):
            drawn = self.world.draw(self.rng, self.cell, number)
            newer = probe.fit(learned.frame, self.fields, self.family)
            judged = drawn.newest(HeadroomParams().max_rows)
            score = self.champion(judged.frame)
            sample = gain.Sample(judged.label, judged.days, score, newer(judged.frame), past=score)
            found = gain.measured(sample, HeadroomParams(price=price, against="past"))
            baseline = self.reference.baseline
            drop = metric_drop(
                row_log_loss(judged.label, score), judged.days, baseline["loss"], baseline["loss_se"], 1 - PARAMS.q
            )
            answered = _answered(judged.frame, score)
            wrong = row_errors(judged.label, score).astype(np.float64)
            errors, rows = int(wrong.sum()), judged.label.size
            yield DriftEvidence(
                champion=1,
                training_rows=self.cell.learned,
                features=compare(
                    self.reference,
                    profile_frame(answered, self.fields, self.spec),
                    self.fields,
                    self.spec,
                    PARAMS,
                ),
                labels=LabelEvidence(
                    rows=rows,
                    errors=errors,
                    baseline=baseline["error_rate"],
                    drop=drop,
                    log_e=log_e_value(errors, rows, baseline["error_rate"]) / design_effect(wrong, judged.days),
                ),
                labelled={_end(past).isoformat(): 1.0 for past in range(number + 1)},
                fresh_labels=10**6,
                headroom=found,
            )
            learned = learned.join(drawn).newest(self.cell.learned)


def _answered(frame: pl.DataFrame, score: Floats) -> pl.DataFrame:
    """The rows with the champion's answers, as the log has them."""
    if score.ndim == 1:
        return frame.with_columns(score=pl.Series(score), prediction=pl.Series((score >= 0.5).astype(np.int8)))
    likeliest = {"score": pl.Series(score.max(1)), "prediction": pl.Series(score.argmax(1).astype(np.int8))}
    return frame.with_columns(**likeliest, **{SCORES: pl.Series(score.tolist())})


def _end(window: int) -> datetime:
    return START + timedelta(days=DAYS * (window + 1))


def triggered(found: list[DriftEvidence], trigger: EpisodeTrigger) -> list[bool]:
    """In which windows a policy that listens to this trigger alone asks for a retraining.

    After each it starts anew, as if the champion had just come.
    """
    config = PARAMS.model_copy(update={"triggers": (trigger,)})
    state: PolicyState | None = None
    asked = []
    for window, evidence in enumerate(found):
        state, action = policy.step(state, evidence, config, _end(window), "alarms", _end(window))
        asked.append(action == "retrain")
        if asked[-1]:
            state = None
    return asked


def measure(cell: Cell, windows: int, deployments: int, price: float) -> dict[str, Any]:
    """One cell: of each trigger how many windows without a shift ask, or how many windows until the first one asks."""
    started = time.process_time()
    asked: dict[str, list[list[bool]]] = {trigger: [] for trigger in WATCHED}
    for number in range(deployments):
        found = list(Deployment(cell, number).windows(windows, price))
        for trigger in WATCHED:
            asked[trigger].append(triggered(found, trigger))
    return {
        "kind": cell.kind,
        "traffic": cell.traffic,
        "rows": cell.rows,
        "shift": cell.shift,
        "price": price,
        "learned": cell.learned,
        "windows": windows * deployments,
        "cpu_seconds": round(time.process_time() - started, 1),
        "rules": {trigger: summary(np.array(flags), moved=cell.shift != "none") for trigger, flags in asked.items()},
    }


def summary(flags: NDArray[np.bool_], *, moved: bool) -> dict[str, Any]:
    """Of ``[deployments, windows]``: false triggers with their 95% bound, or the median delay in windows.

    >>> summary(np.array([[False, True], [False, False]]), moved=False)["alarms"]
    1
    >>> summary(np.array([[False, True], [True, False], [False, True]]), moved=True)["median_delay"]
    2.0
    """
    if moved:
        delays = np.where(flags.any(1), flags.argmax(1) + 1.0, np.inf)
        median = float(np.median(delays))
        found = float(np.isfinite(delays).mean())
        return {"found": found, "median_delay": median if np.isfinite(median) else None}
    alarms = int(flags.sum())
    return {"alarms": alarms, "rate": alarms / flags.size, "upper95": upper(alarms, flags.size)}


# --- the table ----------------------------------------------------------------------------------


def cells() -> list[Cell]:
    """Stable traffic of each kind of case, kind of traffic and size; then the shifts on independent rows."""
    kinds: tuple[Kind, ...] = ("table", "classes", "text")
    traffic: tuple[Traffic, ...] = ("iid", "diurnal", "sessions")
    shifts: tuple[Shift, ...] = ("concept", "covariate", "slow")
    stable = [Cell(kind, of, rows) for rows in SIZES for kind in kinds for of in traffic]
    return [*stable, *(Cell(kind, "iid", rows, shift) for rows in SIZES for shift in shifts for kind in kinds)]


def made_by() -> str:
    """Names what makes the cells: this file, and the project's own that measures and decides."""
    modules = (__file__, gain.__file__, probe.__file__, policy.__file__, sequential.__file__, measures.__file__)
    found = hashlib.sha256(b"".join(Path(module).read_bytes() for module in modules))
    return found.hexdigest()[:12]


def cached(cell: Cell, windows: int, deployments: int) -> dict[str, Any]:
    """The cell's result at the default price, from disk if this code made it before."""
    length = windows if cell.shift == "none" else min(windows, STREAM)
    path = FOLDER / made_by() / f"{cell.name}-{length}-{deployments}.json"
    if not path.exists():
        result = measure(cell, length, deployments, HeadroomParams().price)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result))
        print(f"{cell.name}: {json.dumps(result['rules']['headroom'])}, {result['cpu_seconds']:g} s", flush=True)
    kept: dict[str, Any] = json.loads(path.read_text())
    return kept


def goals(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """False triggers per window of every size, all kinds together: the bound, not the rate, counts."""
    held = []
    for rows in sorted({one["rows"] for one in found}):
        stable = [one for one in found if one["shift"] == "none" and one["rows"] == rows]
        alarms = sum(one["rules"]["headroom"]["alarms"] for one in stable)
        windows = sum(one["windows"] for one in stable)
        name = f"false triggers of headroom per window, 95% bound, {rows:,} rows"
        held.append(goal(name, upper(alarms, windows), MAX_FALSE))
    return held


def markdown(found: list[dict[str, Any]]) -> str:
    """Two small tables: false triggers in how many windows, and windows until the first trigger."""
    head = [" | ".join(("", *WATCHED, "")).strip(), "|" + "---|" * (len(WATCHED) + 3)]
    lines = [f"| stable: case | traffic | rows {head[0]}", head[1]]
    for one in (cell for cell in found if cell["shift"] == "none"):
        told = [f"{one['rules'][name]['alarms']} of {one['windows']:,}" for name in WATCHED]
        lines.append(f"| {one['kind']} | {one['traffic']} | {one['rows']:,} | {' | '.join(told)} |")
    lines += ["", f"| shift | case | rows {head[0]}", head[1]]
    for one in (cell for cell in found if cell["shift"] != "none"):
        told = [_delay(one["rules"][name]) for name in WATCHED]
        lines.append(f"| {one['shift']} | {one['kind']} | {one['rows']:,} | {' | '.join(told)} |")
    return "\n".join(lines)


def _delay(found: dict[str, Any]) -> str:
    delay = found["median_delay"]
    return f"> {STREAM} ({found['found']:.0%} found)" if delay is None else f"{delay:g}"


def main() -> None:
    """Run all cells and write benchmarks/results/alarms-headroom.json.

    ``--quick`` is a part that ends in a minute, ``--markdown`` prints the tables of the kept result.
    """
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.alarms.headroom", description=main.__doc__)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--markdown", action="store_true")
    given = arguments.parse_args()
    if given.markdown:
        print(markdown(json.loads((RESULTS / "alarms-headroom.json").read_text())["cells"]))
        return
    began = time.perf_counter()
    if given.quick:
        quick = [cell for cell in cells() if cell.rows == SIZES[0] and cell.traffic == "iid"]
        found = [cached(cell, 6, 1) for cell in quick]
    else:
        found = [cached(cell, WINDOWS, DEPLOYMENTS) for cell in cells()]
    rows = [
        {"case": one["kind"], "traffic": one["traffic"], "rows": one["rows"], "shift": one["shift"]}
        | {name: one["rules"][name].get("rate", one["rules"][name].get("median_delay")) for name in WATCHED}
        for one in found
    ]
    record(
        "alarms-headroom",
        rows=rows,
        goals=goals(found),
        seconds=time.perf_counter() - began,
        packages=("numpy", "scikit-learn", "polars"),
        more={"cells": found, "price": HeadroomParams().price},
        keep=not given.quick,
    )
    print(markdown(found))


if __name__ == "__main__":
    main()
