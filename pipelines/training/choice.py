"""Which of several candidates a training goes on with: the best on the newest training rows, trained again on all.

The choice is no verdict. What was chosen is trained exactly as if it alone had been declared, and the gate judges that
on rows which nobody has seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines import storage
from pipelines.errors import ConfigError, TrainingDiverged
from pipelines.params import Params
from pipelines.training.candidate import Network, Task
from pipelines.training.compare import Compared, Comparison
from pipelines.training.launch import Beside

Tell = Callable[[Sequence[Compared]], None]
"""Hears of everything that was compared so far, again and again."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What is trained on all rows, by the name it was declared under, and all that was compared."""

    name: str
    params: Params
    compared: tuple[Compared, ...]

    @property
    def facts(self) -> dict[str, Any]:
        """What the train step says of it: ``chosen`` and ``candidates``."""
        chosen = {"name": self.name, "model": self.params.model.model_dump(mode="json"), "train": {}}
        told = [{name: value for name, value in asdict(one).items() if name != "values"} for one in self.compared]
        return {"chosen": chosen, "candidates": told}


def choose(task: Task, network: Callable[[Params], Network], beside: Beside, tell: Tell) -> Choice:
    """Compare the declared candidates; of equal ones the first declared is chosen.

    A try that was killed goes on with those that it has. Raises TrainingDiverged if no candidate is left, naming what
    each of them failed of, and what :meth:`pipelines.training.compare.Comparison.of` raises.
    """
    if task.settings.nodes > 1:
        raise ConfigError(
            f"{task.params.case}: models are compared on one node, PERENNIAL_NODES is {task.settings.nodes}: "
            "declare the one model that is trained on several"
        )
    comparison = Comparison(task, network, beside)
    compared: list[Compared] = []
    for name, model in task.params.candidates.items():
        compared.append(comparison.of(name, task.params.alone(model)))
        log.info("%s: %s", task.params.case, _said(compared[-1]))
        tell(compared)
        storage.failpoint("train", "candidate")
    best = min(compared, key=comparison.better)
    if best.value is None:
        reasons = "; ".join(f"{one.name}: {one.error}" for one in compared)
        raise TrainingDiverged(f"{task.params.case}: none of {len(compared)} candidates could be trained: {reasons}")
    log.info("%s: %s is chosen and trained on all rows", task.params.case, best.name)
    return Choice(best.name, task.params.alone(task.params.candidates[best.name]), tuple(compared))


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
