"""When to retrain, on real history.

Every policy of a case through it (`python -m pipelines replay`), goals and picture. Played before, it is read from the
state folder: a run that was broken off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.record import goal, record
from pipelines.replay.policies import ORACLE

CASES = ("bank", "triage")
IMAGES = Path(__file__).parents[2] / "docs" / "img"
SHOWN = ("retrains", "promotions", "train_seconds", "total", "regret", "by_schedule", "on_frontier")
WANTED = {"bank": (0.95, 1 / 5), "triage": (0.80, 1 / 4)}
"""What headroom has to reach of monthly's gain over never, at least, with which share of its retrainings, at most."""


def main() -> None:
    """Replay, write ``results/replay-<case>.json`` and ``docs/img/replay-<case>.png``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench.replay", description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES), help="with commas (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="the first six months; nothing is written")
    options = parser.parse_args()
    for case in options.cases.split(","):
        _one(case, quick=options.quick)


def _one(case: str, *, quick: bool) -> None:
    began = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "replay",
        "--case",
        case,
        "--json",
        *(["--months", "6"] if quick else []),
    ]
    environment = {"PERENNIAL_HOME": "runs/replay", **os.environ}
    answer = json.loads(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)
    found = json.loads(Path(answer["files"]["json"]).read_text())
    record(
        f"replay-{case}",
        rows=[_row(name, one) for name, one in found["policies"].items()],
        goals=goals(case, found["policies"]),
        seconds=time.perf_counter() - began,
        packages=("torch", "onnxruntime", "scikit-learn", "polars"),
        more={"replay": _kept(found)},
        keep=not quick,
    )
    if not quick:
        (IMAGES / f"replay-{case}.png").write_bytes(Path(answer["files"]["png"]).read_bytes())


def _kept(found: dict[str, Any]) -> dict[str, Any]:
    """The replay as the result file keeps it.

    Five digits, and of each seed's ticks those in which something was done.
    """
    by_seed = {
        seed: {
            name: {"verdicts": one["verdicts"]}
            | {"done": [_brief(tick) for tick in one["ticks"] if "training" in tick]}
            for name, one in of.items()
        }
        for seed, of in found["by_seed"].items()
    }
    short: dict[str, Any] = json.loads(
        json.dumps(found | {"by_seed": by_seed}), parse_float=lambda digits: round(float(digits), 5)
    )
    return short


def _brief(tick: dict[str, Any]) -> dict[str, Any]:
    training = {key: tick["training"][key] for key in ("outcome", "reason", "candidate")}
    return {"tick": tick["tick"], "served": tick["candidate"], **training} | (
        {"asked_by": tick["drift"]["reason"]} if "drift" in tick else {}
    )


def _row(name: str, one: dict[str, Any]) -> dict[str, Any]:
    means = {metric: round(value, 4) for metric, value in one["means"].items()}
    shown = {key: _plain(one[key]) for key in SHOWN}
    return {"name": name, **means, "worst": f"{one['worst']['log_loss']:.3f} ({one['worst']['tick']})", **shown}


def _plain(value: float | None) -> float | None:
    """Counts are means over the training seeds: whole ones are shown as such."""
    if value is None or isinstance(value, bool):
        return value
    if float(value).is_integer():
        return int(value)
    return round(value, 4)


def goals(case: str, policies: dict[str, Any]) -> list[dict[str, Any]]:
    """What the drift policy has to hold among policies without a probe, and what headroom has to hold beside them."""
    drift = policies["drift"]
    never = policies["never"]
    beaten = [
        name
        for name, one in policies.items()
        if not name.startswith(("drift", "headroom", ORACLE))
        and one["retrains"] <= drift["retrains"]
        and one["means"]["log_loss"] <= drift["means"]["log_loss"]
        and (one["retrains"], one["means"]["log_loss"]) != (drift["retrains"], drift["means"]["log_loss"])
    ]
    return [
        goal(
            "mean log-loss of drift over that of never", drift["means"]["log_loss"] / never["means"]["log_loss"], 0.9999
        ),
        goal("policies without a probe that are as good as drift and as cheap, or better", len(beaten), 0),
        *_of_headroom(policies, *WANTED[case]),
    ]


def _of_headroom(policies: dict[str, Any], gained: float, paid: float) -> list[dict[str, Any]]:
    """At the case's price: a share of monthly's gain for a share of its retrainings, and better than any schedule."""
    headroom, never, monthly = (policies[name] for name in ("headroom", "never", "monthly"))
    loss, least, most = (one["means"]["log_loss"] for one in (headroom, monthly, never))
    line = headroom["by_schedule"]
    return [
        goal("headroom: share of monthly's gain over never", (most - loss) / (most - least), gained, "higher"),
        goal("headroom: share of monthly's retrainings", headroom["retrains"] / monthly["retrains"], paid),
        # With more retrainings than monthly there is no line: monthly is what it has to beat.
        goal(
            "headroom: nats below the line through the fixed schedules at its retrainings",
            (least if line is None else line) - loss,
            0.0,
            "higher",
        ),
    ]


if __name__ == "__main__":
    main()
