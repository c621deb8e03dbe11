"""`python -m benchmarks.compose.replay`, inside of a container: the FAST demo of loans on the stack around it.

Started by replay.yaml. The last line that it prints is JSON: the demo's summary, and what it left behind.
"""

from __future__ import annotations

import json
import sys

from benchmarks.full import demo as full_demo
from embedded.demo.plan import load_plan
from embedded.demo.progress import Progress
from embedded.demo.run import replayed
from pipelines import cases
from pipelines.params_file import load_params
from pipelines.settings import read_settings

CASE = "loans"


def main() -> int:
    """Replay, and print what came of it."""
    settings = read_settings()
    plan = load_plan(CASE, fast=True)
    params = load_params(CASE)
    summary = replayed(plan, params, cases.part(CASE, "source").resolve(settings, params), settings, Progress())
    print(json.dumps({"summary": summary, "taken": full_demo.taken(settings, CASE)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
