"""How a version comes to serve, and how one is taken back: two rollouts in stages at the end of a replay.

A candidate that learned from all that was replayed arrives by itself: in shadow, then for a quarter of the keys, then
for all. Then the version that served before is started again and held back on purpose, so that its answers come late:
the guard takes it back. Airflow moves both, as in production; only their windows are seconds, as the traffic of hours
is.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import count, cycle
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from embedded.demo import traffic
from embedded.demo.replay import Replay
from embedded.traffic import prediction_sent
from pipelines import cases, ledger, storage
from pipelines.cli import rolling
from pipelines.contracts import Release
from pipelines.deploy import stages
from pipelines.errors import PerennialError
from pipelines.line import order
from pipelines.line.facts import RegisterFacts
from pipelines.params import GuardParams, HoldParams, RolloutParams, ShadowParams

if TYPE_CHECKING:
    import polars as pl

GUARD = GuardParams(window_minutes=0.05, min_requests=40, loss=None)
"""Windows of seconds; no label comes within them."""
CAREFUL = RolloutParams(shadow=ShadowParams(rows=200), steps=(0.25, 1.0), hold=HoldParams(rows=100), guard=GUARD)
AGAIN = RolloutParams(steps=(0.25, 1.0), hold=HoldParams(rows=1000), guard=GUARD)
LONGEST_SECONDS = 180.0
"""What one of the rollouts may take: many times what it does on an idle machine."""
STOPPED_SECONDS, RUNS_SECONDS = 0.06, 0.015
"""How a process is held back: it stands still, then it runs, and so on."""
UP_TO = [step.name for step in order.TRAINING[: order.TRAINING.index(order.REGISTER) + 1]]
BY_HAND = f"import sys; from pipelines.cli import main; sys.exit(any(main([step, *sys.argv[1:]]) for step in {UP_TO}))"


def released(replay: Replay, rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Roll out a candidate, then a version that is held back, on the newest of ``rows``; what became of each."""
    settings, case = replay.settings, replay.plan.case
    end = replay.plan.windows[-1].end
    sender = _Sender(replay, rows.tail(traffic.BATCH), end)
    before = ledger.head(settings.ledger, case)
    assert before is not None  # there is nothing to replay without a champion
    version = _registered(replay, end + timedelta(hours=1))
    arrived = _rolled_out(replay, CAREFUL, version, "it learned from all that was replayed", sender)
    with _held_back(settings.model_repository / case / str(before.champion)):
        late = _rolled_out(replay, AGAIN, before.champion, "started again, and slow on purpose", sender)
    return [arrived, late]


def _rolled_out(replay: Replay, plan: RolloutParams, version: int, why: str, sender: _Sender) -> dict[str, Any]:
    """One rollout from its start to its end, under traffic."""
    settings, case = replay.settings, replay.plan.case
    params = replay.params.model_copy(update={"rollout": plan})
    # Whatever the gate said of the candidate: what a rollout does is shown, and its row says who asked for it.
    rolling.run(params, settings, "start", why, version=version, despite_verdict=True)
    give_up = time.monotonic() + LONGEST_SECONDS
    answered = Counter[int]()
    while stages.underway(head := ledger.head(settings.ledger, case)):
        if head is not None and time.monotonic() > give_up:
            raise PerennialError(f"{case}: a rollout is not over after {LONGEST_SECONDS:g} s: {stages.told(head)}")
        answered[sender.send()] += 1
    record = _record(ledger.chain(settings.ledger, case), version, why)
    replay.progress.say(record["line"])
    return record | {"answers": {str(number): n for number, n in sorted(answered.items())}}


@contextmanager
def _held_back(folder: Path) -> Iterator[None]:
    """Let the process that computes a version's answers in Triton stand still most of the time."""
    [pid] = [process for process in _processes() if str(folder) in _command(process)]
    over = Event()

    def hold() -> None:
        while not over.wait(RUNS_SECONDS):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(STOPPED_SECONDS)
            os.kill(pid, signal.SIGCONT)

    holding = Thread(target=hold, daemon=True)
    holding.start()
    try:
        yield
    finally:
        over.set()
        holding.join()


def _processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # gone since it was seen
        return ""


def _registered(replay: Replay, as_of: datetime) -> int:
    """The version of a candidate that is trained, judged and registered by hand; nothing of it serves."""
    settings, case = replay.settings, replay.plan.case
    env = {
        "PERENNIAL_HOME": str(settings.root),
        "PERENNIAL_MLFLOW_URL": settings.mlflow_url,
        "PERENNIAL_TRITON_GRPC": settings.triton_grpc,
        "PERENNIAL_TRITON_CLIENT_FILE": str(settings.root / "secrets" / "triton_client"),
    }
    # In a process of its own: a training forks its ranks.
    command = [sys.executable, "-c", BY_HAND, "--case", case, "--as-of", as_of.isoformat()]
    done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-15:])
        raise PerennialError(f"the candidate of {as_of.isoformat()} was not made; the last lines:\n{last}")
    manifest = storage.read_manifest(settings.run_dir(case, as_of) / order.REGISTER.name, verify=False)
    return RegisterFacts.of(manifest).version


def _record(chain: list[Release], version: int, why: str) -> dict[str, Any]:
    """A rollout by its rows in the ledger."""
    last = chain[-1]
    assert last.trial is not None
    own = stages.of_trial(chain, last.trial)
    came = "serves" if last.champion == version else "was taken back"
    said = " -> ".join(row.stage if row.stage != "canary" else f"{row.weight / 10_000:.0%}" for row in own[:-1])
    return {
        "version": version,
        "why": why,
        "serves": last.champion == version,
        "reason": last.reason,
        "seconds": round((own[-1].recorded_at - own[0].recorded_at).total_seconds(), 1),
        "rows": [
            {
                "seq": row.seq,
                "action": row.action,
                "stage": row.stage,
                "weight": row.weight if row.challenger is not None else None,
                "actor": row.actor,
                "reason": row.reason,
                "recorded_at": row.recorded_at.isoformat(),
                "guard": row.trial.evidence.get("verdict") if row.trial is not None else None,
            }
            for row in own
        ],
        "line": f"rollout of version {version} ({why}): {said} -> {came}: {last.reason}",
    }


class _Sender:
    """Sends rows one by one, under ids of their own and at moments after all that was replayed."""

    def __init__(self, replay: Replay, rows: pl.DataFrame, end: datetime) -> None:
        fields = cases.load_fields(replay.plan.case)
        sent = rows.select("id", "event_time", *fields.names)
        self._rows = cycle([prediction_sent(fields, row) for row in sent.iter_rows(named=True)])
        self._numbers = count()
        self._end = end
        self._post = partial(replay.gateway.post, f"/v1/cases/{replay.plan.case}/predict")

    def send(self) -> int:
        """One request of one row; the version that answered."""
        number = next(self._numbers)
        moment = self._end + timedelta(minutes=1, milliseconds=number)
        row = next(self._rows) | {"prediction_id": f"release-{number}", "event_time": moment.isoformat()}
        answer = self._post(json={"rows": [row]}).raise_for_status()
        return int(answer.json()["rows"][0]["version"])
