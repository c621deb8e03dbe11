"""The process group: which rank this process is, and the collectives that the loop uses.

Without a process group everything here works too: one rank is a group of its own.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from pipelines.errors import ConfigError


def get_rank() -> int:
    """This process's rank."""
    if not dist.is_initialized():
        return 0
    rank: int = dist.get_rank()
    return rank


def get_world_size() -> int:
    """The number of ranks."""
    if not dist.is_initialized():
        return 1
    world_size: int = dist.get_world_size()
    return world_size


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """The sums of ``values`` over all ranks, in float64. Every rank gets the same ones, and so decides the same."""
    if not dist.is_initialized():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums)
    return [float(value) for value in sums]


def barrier() -> None:
    """Wait for all ranks (over the CPU, so that it works beside any device)."""
    all_reduce_sum([0.0])


def local_device(kind: str) -> torch.device:
    """The rank's device of ``kind`` cpu or cuda. Raises ConfigError if there is no GPU for it."""
    if kind == "cpu":
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"rank {local_rank} of this node needs a GPU of its own, {found} found: "
            "lower train.ranks, or set resources.gpus to 0"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


@contextmanager
def process_group(device: torch.device, timeout_seconds: float) -> Iterator[None]:
    """Be in the process group that the launcher's environment describes.

    A collective that takes longer than the timeout raises.
    """
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    yield
    # A DDP wrapper that outlives the group can deadlock: it died with the loop, collect what still holds it.
    barrier()
    gc.collect()
    dist.destroy_process_group()
