"""Every strategy takes the same path.

Losses against one rank in fp32 at dropout 0, and trainings that go on under another strategy. The contract: the same
global batch and order of examples, the loss summed and divided by the global count; then all losses agree to 1e-6 (to
1e-5 after a change of strategy in the middle). A table that predicts a number goes the same way, on generated rows, and
a text beside such a table that answers yes or no.
`make proof-equality`; about 10 minutes on two quiet cores with the
case's own encoder (``--quick``: a toy network, about two minutes, written nowhere).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import job
from benchmarks.interrupt import after_checkpoint, ended
from benchmarks.record import goal, record
from benchmarks.reports import rows as rows_of
from benchmarks.workload import MIXED, NUMBER
from pipelines.errors import PerennialError

LIMIT = 1e-6
RESUMED_LIMIT = 1e-5
STEPS = 20
LEFT_AT = 8
MOVES = (
    ("single", "ddp 2"),
    ("single", "fsdp 2"),
    ("ddp 2", "single"),
    ("fsdp 2", "fsdp 1"),
    ("fsdp 2", "single"),
    ("fsdp 1", "ddp 2"),
)
Losses = list[float]
BESIDE = {NUMBER: ", a number", MIXED: ", a text beside a table"}
"""How lines of other networks than the texts' are named."""


def main() -> None:
    """Run the proof and write benchmarks/results/proof-equality.json; exit code 1 if a goal does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a toy network; prints the table and writes nothing")
    quick: bool = parser.parse_args().quick
    began = time.perf_counter()
    network = "toy" if quick else "minilm"
    with tempfile.TemporaryDirectory(prefix="perennial-proof-") as name:
        folder = Path(name)
        data, origin = rows_of(STEPS * job.BASE.batch_size, network)
        data.save(folder / "rows.pt")
        rows, single = straight_on(folder / network, network, folder / "rows.pt")
        others = numbers(folder / NUMBER)[0] + mixed(folder / MIXED)[0]
        for before, after in MOVES:
            rows.append(
                move(
                    folder / f"{before} to {after}".replace(" ", "-"),
                    network,
                    folder / "rows.pt",
                    before,
                    after,
                    single,
                )
            )
            print(rows[-1], flush=True)
    straight, moved = rows[: len(job.STRATEGIES)] + others, rows[len(job.STRATEGIES) :]
    goals = [
        goal("largest difference of a loss to single", max(each["difference"] for each in straight), LIMIT),
        goal(
            "largest difference after going on under another strategy",
            max(each["difference"] for each in moved),
            RESUMED_LIMIT,
        ),
        goal("fsdp 1 has the bits of single", float(straight[2]["weights"] == straight[0]["weights"]), 1.0, "higher"),
    ]
    setting = {
        "network": network,
        "texts": origin,
        "precision": "fp32",
        "dropout": 0.0,
        "batch": job.BASE.batch_size,
        "steps": STEPS,
    }
    seconds = time.perf_counter() - began
    packages = ("torch", "transformers", "deepspeed")
    record(
        "proof-equality",
        rows=rows + others,
        goals=goals,
        seconds=seconds,
        packages=packages,
        more={"setting": setting},
        keep=not quick,
    )
    if not all(each["holds"] for each in goals):
        sys.exit(1)


def numbers(folder: Path) -> tuple[list[dict[str, Any]], Losses]:
    """:func:`straight_on` of a table that predicts a number; its network has no head with a rate of its own."""
    folder.mkdir()
    rows_of(STEPS * job.BASE.batch_size, NUMBER)[0].save(folder / "rows.pt")
    return straight_on(folder, NUMBER, folder / "rows.pt", head_learning_rate=None, learning_rate=2e-3)


def mixed(folder: Path) -> tuple[list[dict[str, Any]], Losses]:
    """:func:`straight_on` of a text beside a table, with a label of two classes."""
    folder.mkdir()
    rows_of(STEPS * job.BASE.batch_size, MIXED)[0].save(folder / "rows.pt")
    # Rates at which a network that begins with zeros moves within the steps: else all would agree on nothing.
    return straight_on(folder, MIXED, folder / "rows.pt", learning_rate=2e-2, head_learning_rate=2e-2)


def straight_on(folder: Path, network: str, rows: Path, **changes: Any) -> tuple[list[dict[str, Any]], Losses]:
    """A line of the table for every strategy, trained without a break; and the losses of one rank."""
    found: list[dict[str, Any]] = []
    losses = dict[str, Losses]()
    for strategy, chosen in job.STRATEGIES.items():
        place = folder / strategy.replace(" ", "-")
        done = job.train(place, network, 0.0, rows, job.BASE.model_copy(update=chosen | changes))
        losses[strategy] = [line["loss"] for line in job.metrics(place)]
        name = f"{strategy}{BESIDE.get(network, '')}"
        found.append(row(name, losses[strategy], losses["single"], done))
        print(found[-1], flush=True)
    return found, losses["single"]


def row(name: str, losses: Losses, single: Losses, done: dict[str, Any]) -> dict[str, Any]:
    """One line of the table. PerennialError if steps are missing."""
    return {
        "name": name,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "difference": difference(losses, single),
        "weights": done["sha256"][:16],
        "steps": len(losses),
        "resumed_from": done["resumed_from"],
    }


def difference(losses: Losses, single: Losses) -> float:
    """Largest difference of a step's loss. PerennialError if they have not as many steps."""
    if len(losses) != len(single):
        raise PerennialError(f"{len(losses)} steps against {len(single)}: the trainings cannot be compared")
    return max(abs(one - other) for one, other in zip(losses, single, strict=True))


def move(folder: Path, network: str, rows: Path, before: str, after: str, single: Losses) -> dict[str, Any]:
    """A training that is killed after the checkpoint of step ``LEFT_AT`` and goes on otherwise.

    It goes on under another strategy or number of ranks.
    """
    kept = job.BASE.model_copy(update={"checkpoint_every": LEFT_AT})
    process = job.start(folder, network, 0.0, rows, kept.model_copy(update=job.STRATEGIES[before]))
    after_checkpoint(folder, LEFT_AT, process)
    job.kill(process.pid)
    process.wait()
    if not ended(folder):
        raise PerennialError(f"processes of {before} are left: {job.holders(folder)}")
    done = job.train(folder, network, 0.0, rows, kept.model_copy(update=job.STRATEGIES[after]))
    if done["resumed_from"] is None:
        raise PerennialError(f"{before} was killed after step {LEFT_AT}, but {after} began anew: look at {folder}")
    return row(f"{before} -> {after}", [line["loss"] for line in job.metrics(folder)], single, done)


if __name__ == "__main__":
    main()
