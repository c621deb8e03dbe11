"""Which of several candidates a training goes on with: the best on the newest training rows, trained again on all.

The choice is no verdict. What was chosen is trained exactly as if it alone had been declared, and the gate judges that
on rows which nobody has seen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines import storage
from pipelines.errors import TrainingDiverged, Unavailable
from pipelines.locks import alone
from pipelines.params import Params
from pipelines.training import search
from pipelines.training.candidate import Network, Task
from pipelines.training.compare import Compared, Comparison
from pipelines.training.launch import Beside

Tell = Callable[[Sequence[Compared]], None]
"""Hears of everything that was compared so far, again and again."""

TRIALS = "trials.json"
"""Beside the weights: every trial with what it tried and what came of it."""
FACTS = ("name", "family", "metric", "value", "seconds", "error")
LOCK = "lock"
LOCK_SECONDS = 10.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What is trained on all rows: the ``best`` of the ``candidates`` as they are declared and of all ``trials``.

    ``train`` are the train parameters that it changes.
    """

    best: Compared
    params: Params
    train: Mapping[str, Any]
    candidates: tuple[Compared, ...]
    trials: tuple[Compared, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What the train step says of it: ``chosen`` and ``candidates``."""
        model = self.params.model.model_dump(mode="json")
        chosen = {"name": self.best.candidate, "model": model, "train": dict(self.train)}
        if self.best.values:
            chosen["trial"] = self.best.name
        return {"chosen": chosen, "candidates": [_plain(one, FACTS) for one in self.candidates]}

    def write(self, folder: Path) -> None:
        """Leave all that was tried in ``folder``, if anything was."""
        if not self.trials:
            return
        told = [_plain(one, (*FACTS, "candidate", "values", "pruned")) for one in self.trials]
        (folder / TRIALS).write_text(json.dumps(told, indent=1) + "\n")


def _plain(one: Compared, names: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in asdict(one).items() if name in names}


def choose(task: Task, network: Callable[[Params], Network], beside: Beside, tell: Tell) -> Choice:
    """Compare the declared candidates, and trials of their parameters where ``train.search`` asks for some.

    Of equal ones the first is chosen, the declared before trials. A try that was killed goes on with what it has.
    Raises TrainingDiverged if no candidate is left, naming what each of them failed of, ConfigError without Optuna
    where it is asked for, Unavailable if another try compares, and what
    :meth:`pipelines.training.compare.Comparison.of` raises.
    """
    if task.params.train.search is not None:
        search.check()
    comparison = Comparison(task, network, beside)
    comparison.folder.mkdir(parents=True, exist_ok=True)
    with alone(
        comparison.folder / LOCK,
        lambda pid: Unavailable(f"another try of this training compares (process {pid}): wait for it, or end it"),
        patience=LOCK_SECONDS,
    ):
        return _chosen(comparison, tell)


def _chosen(comparison: Comparison, tell: Tell) -> Choice:
    params = comparison.task.params
    candidates: list[Compared] = []
    for name, model in params.candidates.items():
        candidates.append(comparison.of(name, params.alone(model)))
        log.info("%s: %s", params.case, _said(candidates[-1]))
        tell(candidates)
        storage.failpoint("train", "candidate")
    if all(one.value is None for one in candidates):
        reasons = "; ".join(f"{one.name}: {one.error}" for one in candidates)
        raise TrainingDiverged(f"{params.case}: none of {len(candidates)} candidates could be trained: {reasons}")
    trials: list[Compared] = []
    for found in search.search(comparison, {one.name: one for one in candidates}):
        trials.append(found)
        tell([*candidates, *trials])
        storage.failpoint("train", "trial")
    # In the order of an undisturbed search, whichever try they are of.
    names = list(params.candidates)
    trials.sort(key=lambda one: (int(one.name.rpartition(".")[2]), names.index(one.candidate)))
    best = min((*candidates, *trials), key=comparison.better)
    log.info("%s: %s is chosen and trained on all rows", params.case, best.name)
    model, train = search.of_trial(params, best)
    return Choice(best, params.alone(model, train), train, tuple(candidates), tuple(trials))


def of_choice(task: Task, choice: Choice, network: Callable[[Params], Network]) -> Task:
    """The task of training what was chosen."""
    return replace(task, params=choice.params, network=network(choice.params))


def _said(found: Compared) -> str:
    if found.value is None:
        return f"candidate {found.name} ({found.family}) is out after {found.seconds:.1f} s"
    return (
        f"candidate {found.name} ({found.family}): {found.metric} {found.value:.6g} on the newest rows "
        f"in {found.seconds:.1f} s"
    )
