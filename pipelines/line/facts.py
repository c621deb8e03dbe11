"""What each step says of its work: the facts of its manifest, typed. Who reads them asks ``<Step>Facts.of(manifest)``.

Older manifests lack what was not counted then, so such fields have defaults; what is said beyond the declared is kept.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.contracts import Decision, EpisodeTrigger, Interval, Manifest, Window
from pipelines.errors import IntegrityError
from pipelines.params import Params


class Facts(BaseModel):
    """Base of a step's facts: frozen, JSON in the manifest."""

    model_config = ConfigDict(frozen=True, extra="allow")

    @classmethod
    def of(cls, manifest: Manifest) -> Self:
        """The facts of a manifest. Raises IntegrityError, naming what is wrong, if they are not those of this step."""
        try:
            return cls.model_validate(manifest.facts)
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors(include_url=False)
            )
            raise IntegrityError(
                f"the manifest of {manifest.step} of {manifest.case}, {manifest.as_of.isoformat()}, does not say what "
                f"the step says ({wrong}): run the step again"
            ) from error

    def kept(self) -> dict[str, Any]:
        """The facts as the manifest holds them: what was not said is not there."""
        return self.model_dump(mode="json", exclude_unset=True)

    def asks(self, as_of: str, folder: str) -> dict[str, Any]:  # noqa: ARG002 - most steps ask for nothing
        """The conf of the run that these facts of the ``folder`` ask for, or nothing."""
        return {}


class IngestFacts(Facts):
    """What became of every row that was delivered."""

    origin: Literal["source", "log"]
    window: Window
    rows: int
    labelled: int
    partitions: list[dict[str, Any]]
    source: dict[str, Any] = {}
    counts: dict[str, int] = {}
    reasons: dict[str, int] = {}


class ValidateFacts(Facts):
    """How many rows keep the contract, and why the others do not: ``rows + bad + repeats + outside = delivered``."""

    rows: int
    bad: int
    bad_share: float
    reasons: dict[str, int]
    delivered: int | None = None
    repeats: int | None = None
    outside: int | None = None


class DatasetFacts(Facts):
    """Which rows train and judge.

    ``champion`` is the version that served then; ``base_rate`` has an entry for each class.
    """

    train_rows: int = 0
    base_rate: float | list[float] = 0.0
    champion: int | None = None
    rule: str = ""
    holdout_rows: int = 0
    window: Window | None = None
    rows_per_day: float | None = None
    sampled: dict[str, int] = {}
    """``{rows, of}``: how many of how many rows of the window were kept by a hash of their ids."""


class TrainFacts(Facts):
    """How the training went."""

    weights_sha256: str
    rows: int = 0
    ranks: int = 1
    stopped: str = ""
    steps: int = 0
    warm_start: bool = False
    curve: list[float] = []
    scales: dict[str, dict[str, Any]] = {}
    cost: dict[str, Any] = {}
    chosen: dict[str, Any] | None = None
    """``{name, model, train}``: what was chosen of several candidates, and the train parameters that tuning changed."""
    candidates: list[dict[str, Any]] = []
    """All that were compared: ``{name, family, metric, value, seconds, error}`` each."""
    mlflow_page: str | None = None


def chosen_params(params: Params, facts: TrainFacts) -> Params:
    """The parameters that a training went on with: the declared ones, unless it chose among several candidates."""
    if facts.chosen is None:
        return params
    return params.alone(facts.chosen["model"], facts.chosen["train"])


class ExportFacts(Facts):
    """The bundle, how far its answers are from torch's, and what each variant costs."""

    parity: float
    parity_rows: int
    fields_hash: str = ""
    variants: dict[str, dict[str, Any]] = {}


class EvaluateFacts(Facts):
    """Metrics on the holdout, of the challenger, of the champion if there is one, and of the baseline.

    ``base_rate`` holds the baseline's metrics beside its answer for all rows, ``baseline`` says what it is.
    """

    n: int
    positives: int
    challenger: dict[str, Any]
    champion: dict[str, Any] | None = None
    base_rate: dict[str, Any] = {}
    baseline: str = ""
    opponent: dict[str, Any] | None = None
    slices: dict[str, Any] = {}
    confusion: list[list[int]] | None = None
    classes: list[str] = []


class GateFacts(Facts):
    """The verdict in short; as a whole it stands in the ledger under ``verdict_sha256``."""

    decision: Decision
    rule: str
    reason: str
    verdict_sha256: str = ""


class RegisterFacts(Facts):
    """MLflow's number of the candidate, which is Triton's folder and the ledger's champion, and its run."""

    version: int
    mlflow_run: str = ""


Outcome = Literal["promoted", "kept", "already_released", "stale", "opened", "waits", "aborted"]


class RolloutFacts(Facts):
    """What became of the candidate; ``seq`` is its release or its row in a rollout, None if there is none."""

    outcome: Outcome
    version: int
    seq: int | None
    candidate: str = ""
    """The key of a candidate whose rollout others move on."""

    def asks(self, as_of: str, folder: str) -> dict[str, Any]:  # noqa: ARG002 - the run's clock says all
        """A run that moves the candidate's rollout, where there is one."""
        return {"as_of": as_of, "candidate": self.candidate} if self.candidate else {}


class ProfileFacts(Facts):
    """The days of the window that have rows, each ``{date, path, rows, hours}``.

    With them rows that could not be read yet.
    """

    window: Window
    spec: str
    days: list[dict[str, Any]] = []
    rows: int = 0
    unread: int = 0


class HeadroomFacts(Facts):
    """What a retraining would gain in nats, of so many rows, beside its price; or a code and a sentence why not."""

    code: str
    why: str = ""
    rows: int = 0
    gain: Interval | None = None
    price: float = 0.0


class DriftFacts(Facts):
    """The policy's answer in short."""

    state: str
    action: Literal["none", "alert", "retrain"]
    reason: str
    trigger: EpisodeTrigger | None = None
    episode: str | None = None

    def asks(self, as_of: str, folder: str) -> dict[str, Any]:
        """A training run, when the policy says so."""
        if self.action != "retrain":
            return {}
        evidence = f"{folder}/report.json"
        return {"as_of": as_of, "trigger": self.trigger, "episode": self.episode, "evidence": evidence}


class AlertFacts(Facts):
    """How many alerts are open, by severity, and how many notices were sent or could not be."""

    info: int
    warning: int
    critical: int
    notices: int
    undelivered: int


class ReportFacts(Facts):
    """What the page says first."""

    state: str
    headline: str
    bytes: int
