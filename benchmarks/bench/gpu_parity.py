"""Export parity of one model of `make bench-gpu`: ``python -m benchmarks.bench.gpu_parity MODEL DEVICE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import nn

from benchmarks.workload import CASE, SIZES, network, text_params
from pipelines import runtime
from pipelines.cases import load_fields, part
from pipelines.export.bundle import write_bundle
from pipelines.export.onnx import of_torch
from pipelines.training.group import local_device


def parity(name: str, device: torch.device, folder: Path) -> float:
    """Largest difference of a probability between torch on the device and ONNX Runtime, in fp32.

    ONNX Runtime has the exported model.
    """
    fields = load_fields(CASE)
    part(CASE, "model").tokenizer(text_params(0.0), folder)
    torch.manual_seed(0)
    model: nn.Module = network(name, 0.0).eval()
    write_bundle(of_torch(model, fields), fields, folder, {})
    worst, generator = 0.0, torch.Generator().manual_seed(0)
    # TF32 would round the device's products to 10 bits.
    torch.backends.cuda.matmul.allow_tf32 = False
    model.to(device)
    for rows, tokens in ((1, 2), (3, 17), (64, 128), (2, 96)):
        ids = torch.randint(0, SIZES[name].vocabulary, (rows, tokens), generator=generator)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.no_grad():
            ours = torch.softmax(model(**{key: tensor.to(device) for key, tensor in inputs.items()}), 1).cpu().numpy()
        theirs = runtime.score(folder, {key: tensor.numpy() for key, tensor in inputs.items()})
        worst = max(worst, float(abs(ours - theirs).max()))
    return worst


if __name__ == "__main__":
    print(parity(sys.argv[1], local_device(sys.argv[2]), Path(sys.argv[3])))
