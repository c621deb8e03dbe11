"""What the gate decides by, and the slices that it looks at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from pipelines.params.base import Seed, Strict, rising

Metric = Literal["log_loss", "brier", "roc_auc", "pr_auc", "macro_f1", "accuracy", "cost", "rmse", "mae", "pinball"]
METRICS: Mapping[str, tuple[Metric, ...]] = {
    "binary": ("log_loss", "brier", "roc_auc", "pr_auc", "macro_f1", "accuracy", "cost"),
    "classes": ("log_loss", "brier", "macro_f1", "accuracy", "cost"),
    "number": ("rmse", "mae", "pinball"),
}
"""What the gate can decide by, by the kind of target."""
MORE_IS_BETTER = frozenset({"roc_auc", "pr_auc", "macro_f1", "accuracy"})
"""Of the others less is."""


class Bins(Strict):
    """A slice per bin of a number: below the first edge, between edges, from the last one on."""

    field: str
    bins: Annotated[tuple[float, ...], AfterValidator(rising)] = Field(min_length=1)


def _slice_kind(value: Any) -> str:
    return "value" if isinstance(value, str) else "bins"


SliceBy = Annotated[Annotated[str, Tag("value")] | Annotated[Bins, Tag("bins")], Discriminator(_slice_kind)]
"""What slices are cut by: a field of which each value is one, or a number with bins."""


def fields_of(slices: Sequence[SliceBy]) -> tuple[str, ...]:
    """The fields that slices are cut by."""
    return tuple(one if isinstance(one, str) else one.field for one in slices)


def edges_of(slices: Sequence[SliceBy]) -> dict[str, tuple[float, ...]]:
    """The edges of the numbers that are cut by bins."""
    return {one.field: one.bins for one in slices if isinstance(one, Bins)}


class GateParams(Strict):
    """The rules of promotion, as data. Lifts are in the unit of ``metric``, positive where the challenger is better."""

    metric: Metric
    min_lift: float
    first_lift: float = 0.0
    """A first champion's lower bound has to be above the baseline by so much; below 0: no worse than by so much."""
    baseline: str | None = None
    """What a first champion has to beat knows this category or flag; None: it knows nothing of a row."""
    confidence: float = Field(default=0.95, gt=0, lt=1)
    draws: int = Field(default=2000, ge=100)
    seed: Seed = 0
    slices: tuple[SliceBy, ...] = ()
    min_slice_rows: int = Field(default=100, gt=0)
    min_differing: int = Field(default=100, ge=0)
    """Rows that the two models have to answer differently: an interval of fewer promises more than it holds."""
    floors: dict[Metric, float] = {}
    """What the challenger has to reach on the holdout whoever serves; where less is better, what it must not exceed."""
    costs: tuple[tuple[float, ...], ...] = ()
    """For ``metric: cost``: a row per class that comes, a column per class that is decided for, in declared order."""
    quantile: float | None = Field(default=None, gt=0, lt=1)
    """For ``metric: pinball``: the quantile of the label that is predicted."""

    @property
    def slice_fields(self) -> tuple[str, ...]:
        """The fields that slices are cut by."""
        return fields_of(self.slices)

    @property
    def bins(self) -> dict[str, tuple[float, ...]]:
        """The edges of the numbers that are cut by bins."""
        return edges_of(self.slices)

    @model_validator(mode="after")
    def _consistent(self) -> GateParams:
        used = {self.metric, *self.floors}
        if "cost" in used and not self.costs:
            raise ValueError("the cost needs costs: give a row per class that comes, as in [[0, 1], [5, 0]]")
        if any(len(row) != len(self.costs) for row in self.costs):
            raise ValueError(f"costs has {len(self.costs)} rows, and not as many columns in each: give a square")
        if "pinball" in used and self.quantile is None:
            raise ValueError("the pinball loss needs a quantile: give one between 0 and 1, as in quantile: 0.9")
        twice = [name for name, times in Counter(self.slice_fields).items() if times > 1]
        if twice:
            raise ValueError(f"slices names {twice[0]} twice: remove one of them")
        return self
