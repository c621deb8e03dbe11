"""One replay against a stack that runs, wherever that is."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from embedded.airflow import client
from embedded.demo import traffic
from embedded.demo.plan import Plan
from embedded.demo.progress import Progress
from embedded.demo.release import released
from embedded.demo.replay import Replay
from embedded.demo.summary import build_summary
from embedded.demo.ticks import play
from pipelines.params import Params
from pipelines.settings import Settings


def replayed(plan: Plan, params: Params, source: Any, settings: Settings, progress: Progress) -> dict[str, Any]:
    """Play the plan on the stack of ``settings``, which has no champion yet; the summary."""
    with (
        traffic.client(settings.gateway_url, settings.key_file) as gateway,
        # What only the report needs takes the time that the loop leaves.
        ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,)) as pool,
    ):
        replay = Replay(plan, params, settings, source, client(settings), gateway, progress, pool)
        rows = play(replay)
        with progress.phase("score"):
            summary = build_summary(replay, rows)
        if plan.release:
            with progress.phase("release"):
                summary["rollouts"] = released(replay, rows)
        return summary
