"""Writes golden.json, the losses of the plain trainings of ranks.py on one rank.

Run it as ``python -m tests.pipelines.training.golden``.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from tests.pipelines.training.ranks import trials

if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = trials("single", Path(folder))
    losses = {trial: [round(loss, 8) for loss in found[trial]["losses"]] for trial in ("plain", "all")}
    Path(__file__).with_name("golden.json").write_text(json.dumps(losses, indent=1) + "\n")
