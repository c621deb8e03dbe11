"""DeepSpeed's ZeRO (Rajbhandari et al., 2020, arXiv:1910.02054). The only home of DeepSpeed.

Stage 1 shards the optimiser's state, stage 2 the gradients too, stage 3 the weights as well.
"""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.errors import ConfigError
from pipelines.params import TrainParams
from pipelines.training.group import get_rank, get_world_size
from pipelines.training.strategies import ExtraWeights, Strategy, adamw, set_rates

if not torch.cuda.is_available():
    # Read while deepspeed is imported.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("DS_LOG_LEVEL", "error")

import deepspeed
import deepspeed.ops

# None of its own operators is used here. To say so keeps it from looking for a compiler, and from compiling
# collectives over shared memory at the first use of gloo.
deepspeed.ops.__compatible_ops__ = defaultdict(bool)
logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
# It calls collectives by their former names, at every step.
warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)

TAG = "deepspeed"


def set_up(  # noqa: C901 - one closure per function of the interface
    model: nn.Module, params: TrainParams, device: torch.device
) -> Strategy:
    """Train ``model`` under ZeRO ``params.zero_stage``. Raises ConfigError for fp16.

    A checkpoint goes on with the same stage and number of ranks only.
    """
    if params.precision == "fp16":
        raise ConfigError(
            "train.precision is fp16, which deepspeed scales for models that are half throughout: "
            "choose bf16, or strategy fsdp"
        )
    rank = get_rank()
    world_size = get_world_size()
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
    deepspeed.init_distributed(backend, verbose=False)
    engine, _, _, _ = deepspeed.initialize(
        model=model, optimizer=adamw(model, params), config=_config(params, world_size)
    )
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    sharded = params.zero_stage == 3
    if sharded:
        weights = {name: weight.ds_tensor for name, weight in weights.items()}

    def forward(inputs: Mapping[str, Tensor], is_last: bool) -> Tensor:
        engine.set_gradient_accumulation_boundary(is_last)
        logits: Tensor = engine(**{name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()})
        return logits.float()

    def backward(loss: Tensor) -> None:
        # The loss is a share of the global batch's mean already.
        engine.backward(loss, scale_wrt_gas=False)

    def clip_and_step(factor: float) -> float:
        set_rates(engine.optimizer, factor)
        skipped = engine.skipped_steps
        engine.step()
        if engine.skipped_steps > skipped:
            return math.inf
        return float(engine.get_global_grad_norm())

    def save(folder: Path, extra_weights: ExtraWeights) -> None:
        engine.save_checkpoint(str(folder), tag=TAG, save_latest=False)
        torch.save(extra_weights, _extra_file(folder, rank))

    def load(folder: Path, names: Iterable[str]) -> ExtraWeights:
        found, _ = engine.load_checkpoint(str(folder), tag=TAG)
        if found is None:
            raise ConfigError(
                f"{folder} is no checkpoint of {world_size} rank(s) under ZeRO {params.zero_stage}: "
                "remove it to train anew"
            )
        everything: ExtraWeights = torch.load(_extra_file(folder, rank), weights_only=True)
        return {name: everything[name] for name in names}

    def full_state_dict() -> dict[str, Tensor]:
        with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=sharded):
            state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
        if rank != 0:
            return {}
        return state

    return Strategy(forward, backward, clip_and_step, lambda: weights, save, load, full_state_dict)


def _extra_file(folder: Path, rank: int) -> Path:
    """A rank's part of the weights beside the model's own in a checkpoint."""
    return folder / f"kept-{rank}.pt"


def _config(params: TrainParams, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a training."""
    config: dict[str, Any] = {
        "train_batch_size": params.batch_size,
        "train_micro_batch_size_per_gpu": params.batch_size // (world_size * params.accumulate),
        "gradient_accumulation_steps": params.accumulate,
        "gradient_clipping": params.clip or 0.0,
        "steps_per_print": 10**9,
        "zero_allow_untrusted_optimizer": True,
        "zero_optimization": {
            "stage": params.zero_stage,
            # Whole weights that outlive a module's pass would hide what is put into the shards between two passes.
            "stage3_param_persistence_threshold": 0,
            "stage3_max_reuse_distance": 0,
            "stage3_max_live_parameters": 0,
        },
    }
    if params.precision == "bf16":
        # Weights and their gradients stay float32 where they are kept, as under the other strategies.
        config["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return config
