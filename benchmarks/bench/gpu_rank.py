"""One rank of `make bench-gpu`.

``python -m torch.distributed.run --nproc-per-node N -m benchmarks.bench.gpu_rank SPEC.json``. Synthetic tokens that lie
on the device already: what is measured is forward, backward, clipping and the fused AdamW of the project's own
strategies. Rank 0 leaves a row in the file that the specification names.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks import job
from benchmarks.workload import SIZES, network
from pipelines.params import TrainParams
from pipelines.training.group import barrier, local_device, process_group
from pipelines.training.strategies import set_up

PEAK_FLOPS = 989e12
"""Dense bf16 of one H100 or H200 (NVIDIA's data sheet, without sparsity)."""


def flops_per_token(name: str, sequence: int) -> int:
    """Forward and backward of one token: 6 per weight outside of the embeddings, and 12 * L * hidden * S for attention.

    After Chowdhery et al., "PaLM", 2022, arXiv:2204.02311, appendix B; recomputed activations do not count.
    """
    size = SIZES[name]
    block = 4 * size.hidden**2 + 2 * size.hidden * size.feed_forward
    return 6 * size.layers * block + 12 * size.layers * size.hidden * sequence


def measure(spec: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The row of the cell: samples per second, MFU and peak memory, or that it does not fit."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    params = job.BASE.model_copy(
        update={
            **job.STRATEGIES[spec["arm"]],
            "batch_size": spec["batch"],
            "ranks": ranks,
            "precision": "bf16",
            "pool": 0,
        }
    )
    row = {
        "arm": spec["arm"].split()[0],
        "model": spec["model"],
        "batch": spec["batch"],
        "compiled": spec["compiled"],
        "ranks": ranks,
    }
    try:
        seconds = timed(spec, params, device)
    except torch.OutOfMemoryError:
        return {**row, "samples_per_second": None, "why": "out of memory"}
    rate = spec["batch"] / statistics.median(seconds)
    tokens = rate * spec["sequence"]
    row |= {"step_ms": round(1000 * statistics.median(seconds), 3), "samples_per_second": round(rate, 1)}
    if device.type == "cuda":
        row["mfu"] = round(flops_per_token(spec["model"], spec["sequence"]) * tokens / (PEAK_FLOPS * ranks), 4)
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def timed(spec: dict[str, Any], params: TrainParams, device: torch.device) -> list[float]:
    """Seconds of each measured step."""
    torch.manual_seed(params.seed)
    model = network(spec["model"], 0.1).train()
    if spec["compiled"]:
        # Block by block, as FSDP shards them: one graph serves all blocks.
        for block in model.blocks:
            block.compile()
    strategy = set_up(model, params, device)
    own = params.batch_size // params.ranks
    inputs = {
        "input_ids": torch.randint(0, SIZES[spec["model"]].vocabulary, (own, spec["sequence"]), device=device),
        "attention_mask": torch.ones(own, spec["sequence"], dtype=torch.int64, device=device),
    }
    labels = torch.randint(0, model.head.out_features, (own,), device=device)

    def step() -> None:
        strategy.backward(cross_entropy(strategy.forward(inputs, True), labels))
        strategy.clip_and_step(1.0)

    for _ in range(spec["warm_up"]):
        step()
    barrier()
    found = of_cuda(step, spec["steps"]) if device.type == "cuda" else of_clock(step, spec["steps"])
    barrier()
    return found


def of_cuda(step: Any, count: int) -> list[float]:
    """Seconds of ``count`` steps by CUDA events: the device's own time, and one wait at the end."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1000 for before, after in itertools.pairwise(events)]


def of_clock(step: Any, count: int) -> list[float]:
    """Seconds of ``count`` steps by the clock."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        step()
        found.append(time.perf_counter() - began)
    return found


def main(path: Path) -> None:
    """Measure the cell of the specification."""
    spec = json.loads(path.read_text())
    device = local_device(spec["device"])
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    # "single" is the bare model without a process group.
    with process_group(device, 600) if spec["arm"] != "single" else nullcontext():
        row = measure(spec, device)
        if int(os.environ.get("RANK", "0")) == 0:
            Path(spec["out"]).write_text(json.dumps(row))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
