"""What the ranks of a training tell each other. Everything here works without a process group, too: one rank is a group of its own."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from pipelines.errors import ConfigError


def place() -> tuple[int, int]:
    """This process's rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def total(values: Sequence[float]) -> list[float]:
    """The sums of ``values`` over all ranks: what every rank then decides by, so that none goes on alone."""
    if not dist.is_initialized():
        return list(values)
    summed = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(summed)
    return [float(value) for value in summed]


def barrier() -> None:
    """Wait for all ranks (over the CPU, so that it works beside any device)."""
    total([0.0])


def device_of(kind: str) -> torch.device:
    """The rank's device of ``kind`` cpu or cuda. Raises ConfigError if there is no GPU for it."""
    if kind == "cpu":
        return torch.device("cpu")
    local, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= found:
        raise ConfigError(
            f"rank {local} of this node needs a GPU of its own, {found} found: lower train.ranks, or set resources.gpus to 0"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def joined(device: torch.device, timeout_seconds: float) -> Iterator[None]:
    """Be in the process group that the launcher's environment describes; a collective that takes longer than the timeout raises."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    yield
    # A DDP wrapper that outlives the group can deadlock: it died with the loop, collect what still holds it.
    barrier()
    gc.collect()
    dist.destroy_process_group()
