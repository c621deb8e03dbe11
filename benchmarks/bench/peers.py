"""One arm of `make bench-training` in a process of its own.

``python -m benchmarks.bench.peers FOLDER``, in ``.venv-bench``. Every arm trains the same model from the same weights
on the same batches in the same order, with fused AdamW, gradients clipped at 1 and the same threads. Only ``ours`` also
writes metrics and checkpoints. The clock of an arm runs from before its first batch to the end of its last step:
imports and model are ``start_up``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.workload import MAX_TOKENS, fixed, network
from pipelines.params import TrainParams
from pipelines.training import fit as fitting
from pipelines.training import loop
from pipelines.training.checkpoint import publish
from pipelines.training.metrics import Metrics
from pipelines.training.rows import Rows, batches, load_rows
from pipelines.training.strategies import adamw

PACKAGES = ("torch", "transformers", "accelerate", "lightning-fabric")
DROPOUT = 0.1


class Clock:
    """Seconds of wall and of all cores between ``begin`` and the last ``lap``; ``lap`` is called after every step."""

    def __init__(self) -> None:
        self.first: float | None = None
        self.began = (0.0, 0.0)
        self.ended = (0.0, 0.0)
        self.begun = False

    def begin(self) -> None:
        """Once, before the first batch."""
        if not self.begun:
            self.began = now()
            self.begun = True

    def lap(self) -> None:
        """A step is done."""
        self.ended = now()
        if self.first is None:
            # Linux counts CLOCK_MONOTONIC from boot for all processes: the starter wrote down its own.
            self.first = time.monotonic()

    def seconds(self) -> tuple[float, float]:
        """(wall, all cores)."""
        return self.ended[0] - self.began[0], self.ended[1] - self.began[1]


def now() -> tuple[float, float]:
    """(wall, processor time of this process, its threads and its ended children)."""
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


def bare(rows: Rows, params: TrainParams, clock: Clock, _work: Path, *, length: int | None = None) -> nn.Module:
    """The loop that everybody writes; with ``length`` every batch is padded to it."""
    model = network_of(params).train()
    optimiser = adamw(model, params)
    clock.begin()
    for batch in order(rows, params):
        inputs = rows.batch(batch)
        loss = cross_entropy(model(**(inputs if length is None else fixed(inputs, length))), rows.labels[batch])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), params.clip)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        clock.lap()
    return model


def padded(rows: Rows, params: TrainParams, clock: Clock, work: Path) -> nn.Module:
    """The bare loop as most start: random batches, each padded to 128."""
    return bare(rows, params.model_copy(update={"pool": 0}), clock, work, length=MAX_TOKENS)


def ours(rows: Rows, params: TrainParams, clock: Clock, work: Path) -> nn.Module:
    """The project's own training, with metrics and checkpoints."""
    add = Metrics.add

    def first_batch(*arguments: Any) -> list[Tensor]:
        clock.begin()
        return batches(*arguments)

    def step_done(self: Metrics, **values: Any) -> None:
        add(self, **values)
        clock.lap()

    with patch.object(loop, "batches", first_batch), patch.object(Metrics, "add", step_done):
        return fitting.fit(lambda: network_of(params, seed=False), rows, params, work).model


def accelerate(rows: Rows, params: TrainParams, clock: Clock, _work: Path) -> nn.Module:
    """Hugging Face Accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = network_of(params).train()
    model, optimiser = accelerator.prepare(model, adamw(model, params))
    clock.begin()
    for batch in order(rows, params):
        loss = cross_entropy(model(**rows.batch(batch)), rows.labels[batch])
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), params.clip)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        clock.lap()
    return accelerator.unwrap_model(model)


def fabric(rows: Rows, params: TrainParams, clock: Clock, _work: Path) -> nn.Module:
    """Lightning Fabric."""
    from lightning_fabric import Fabric

    runner = Fabric(accelerator="cpu", devices=1)
    model = network_of(params).train()
    model, optimiser = runner.setup(model, adamw(model, params))
    clock.begin()
    for batch in order(rows, params):
        loss = cross_entropy(model(**rows.batch(batch)), rows.labels[batch])
        runner.backward(loss)
        runner.clip_gradients(model, optimiser, max_norm=params.clip, error_if_nonfinite=False)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
        clock.lap()
    return model.module


class WithLoss(nn.Module):  # type: ignore[misc] # torch is Any to mypy
    """What the Trainer of Hugging Face wants of a model: that it computes its own loss."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Mean loss and logits."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return {"loss": cross_entropy(logits, labels), "logits": logits}


class Batches(torch.utils.data.Dataset[dict[str, Tensor]]):  # type: ignore[misc] # as above
    """Whole batches, padded when they are asked for, as the other arms do."""

    def __init__(self, rows: Rows, cut: Sequence[Tensor]) -> None:
        self.rows = rows
        self.cut = cut

    def __len__(self) -> int:
        return len(self.cut)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        batch = self.cut[place]
        return {**self.rows.batch(batch), "labels": self.rows.labels[batch]}


def trainer(rows: Rows, params: TrainParams, clock: Clock, work: Path) -> nn.Module:
    """The Trainer of Hugging Face, with its reports and checkpoints off."""
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Given(Trainer):  # type: ignore[misc] # transformers is Any to mypy
        """Takes batches that are cut already."""

        def get_train_dataloader(self) -> DataLoader[Any]:
            """In the given order."""
            return DataLoader(self.train_dataset, batch_size=None, shuffle=False)

    class Laps(TrainerCallback):  # type: ignore[misc] # as above
        """Reads the clock."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            """Before the first batch."""
            clock.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            """After a step."""
            clock.lap()

    model = WithLoss(network_of(params).train())
    arguments = TrainingArguments(
        output_dir=str(work),
        num_train_epochs=params.epochs,
        per_device_train_batch_size=params.batch_size,
        max_grad_norm=params.clip,
        lr_scheduler_type="constant",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=params.seed,
    )
    data = Batches(rows, order(rows, params))
    Given(
        model=model,
        args=arguments,
        train_dataset=data,
        optimizers=(adamw(model.model, params), None),
        callbacks=[Laps()],
    ).train()
    return model.model


ARMS: dict[str, Callable[..., nn.Module]] = {
    "bare loop, padded to 128": padded,
    "bare loop": bare,
    "ours": ours,
    "ours, bf16": ours,
    "Hugging Face Trainer": trainer,
    "Accelerate": accelerate,
    "Lightning Fabric": fabric,
}


def order(rows: Rows, params: TrainParams) -> list[Tensor]:
    """The batches of the only epoch, as the project's own loop cuts them."""
    return batches(rows, params.batch_size, params.pool, params.seed, 0)


def network_of(params: TrainParams, *, seed: bool = True) -> nn.Module:
    """The network of the job, from the seed."""
    if seed:
        torch.manual_seed(params.seed)
    return network(os.environ["BENCH_NETWORK"], DROPOUT)


def main(folder: Path) -> None:
    """Do what ``folder/arm.json`` says; leave ``folder/answer.json``."""
    job = json.loads((folder / "arm.json").read_text())
    params = TrainParams.model_validate_json(json.dumps(job["params"]))
    os.environ["BENCH_NETWORK"] = job["network"]
    torch.set_num_threads(params.threads)
    rows = load_rows(Path(job["rows"]))
    clock = Clock()
    saves = list[tuple[float, float]]()

    def timed(*arguments: Any) -> bool:
        before = now()
        done = publish(*arguments)
        after = now()
        saves.append((after[0] - before[0], after[1] - before[1]))
        return done

    with patch.object(loop, "publish", timed):
        ARMS[job["arm"]](rows, params, clock, folder / "work")
    wall, cores = clock.seconds()
    assert clock.first is not None
    found = {
        "wall": wall,
        "cores": cores,
        "saves": saves,
        "start_up": clock.first - job["started"],
        "samples": len(rows),
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }
    (folder / "answer.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
