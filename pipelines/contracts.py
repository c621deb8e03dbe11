"""The nouns of Perennial: frozen, JSON-serialisable values that pass between rooms and steps."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

EpisodeTrigger = Literal["drift", "performance", "headroom", "volume"]
"""What opens an episode.

Inputs or outputs moved, arrived labels show more errors, a retraining would gain more than it costs, or enough labelled
rows are new.
"""
Trigger = Literal["initial", "schedule", "drift", "performance", "headroom", "volume", "manual"]
Decision = Literal["promote", "reject", "inconclusive"]
Action = Literal["promote", "rollback", "release", "open", "advance", "hold", "resume", "abort", "settle"]
"""What a row of the release ledger says.

The first three are how a version came to serve: by its verdict, by taking back the one above it, or because a person
named it. The others move a challenger's rollout and leave the champion as it is; ``settle`` ends its soak.
"""
CHANGES: frozenset[Action] = frozenset({"promote", "rollback", "release"})
"""The actions that change who serves."""
Stage = Literal["shadow", "canary", "soak", "full"]
"""How far a rollout is: the challenger answers nobody, a part, or all under watch; ``full``: none is under way."""
Arm = Literal["champion", "challenger"]
"""Whose answers a request gets."""
Severity = Literal["info", "warning", "critical"]
AlertRule = Literal[
    "drift_confirmed",
    "retrain_kept",
    "retrain_missing",
    "quality_blocked",
    "rows_refused",
    "scores_differ",
    "performance_dropped",
    "headroom_blocked",
    "labels_late",
    "volume_out_of_band",
    "champion_old",
    "windows_unjudged",
    "page_broken",
    "sink_broken",
]
"""What a drift run tells a person of; each has its section in docs/runbooks.md, and so have those of ``RunRule``."""
RunRule = Literal["run_late", "run_failed", "case_gone", "alias_moved", "rollout_aborted", "rollout_stuck"]
"""What people are told beside the alerts: of a run of the scheduler itself, a case's folder, an alias (alerts/runs.py).
"""


def _as_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()} has no time zone: give one, e.g. {value.isoformat()}+00:00")
    return value.astimezone(UTC)


Instant = Annotated[datetime, AfterValidator(_as_utc)]
"""A point in time, always aware and always in UTC."""


class Value(BaseModel):
    """Base of every noun: immutable, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Window(Value):
    """A half-open interval ``[start, end)`` of event time in UTC."""

    start: Instant
    end: Instant


class Manifest(Value):
    """What a step leaves behind; written last, so that no manifest means no artefact.

    ``key`` is the identity of the work (step, inputs' keys, declared parameters, step version);
    ``provenance`` (commit, lock hash, wall times) is kept beside it and never enters it.
    ``files`` maps a path relative to the manifest's folder to the file's sha256;
    ``facts`` holds small JSON values that later steps and people read.
    ``sha256`` is that of all the rest; empty in manifests that were written before there was one.
    """

    step: str
    case: str
    as_of: Instant
    key: str
    inputs: dict[str, str]
    files: dict[str, str]
    facts: dict[str, Any]
    provenance: dict[str, Any]
    sha256: str = ""


class Interval(Value):
    """A point estimate with its confidence interval."""

    value: float
    low: float
    high: float


class Mean(Value):
    """An estimated mean with its standard error, in the mean's unit; ``freedom`` is Student's t's, 0: normal."""

    value: float
    se: float
    freedom: int = 0


class SliceEvidence(Value):
    """The paired improvement on one declared slice of the holdout."""

    name: str
    n: int
    lift: Interval


class FloorEvidence(Value):
    """A metric of the challenger on the holdout beside what it has to reach; None: it is not defined on these rows.

    Where less is better it must not exceed the ``limit``.
    """

    metric: str
    value: float | None
    limit: float
    holds: bool


LATER = frozenset({"differ", "more_rows", "unchecked", "floors", "baseline"})
"""Parts of the evidence that verdicts of earlier releases do not have."""


class Evidence(Value):
    """Everything that the gate may look at: nothing else can influence a verdict.

    ``positives`` counts rows of the positive class, or with classes those outside of the commonest one.
    ``lift`` is the paired improvement of the decision metric, challenger over champion, in the metric's own unit and
    positive when the challenger is better; ``lift_sd`` is ``sqrt(n)`` times its standard error (of a mean, the
    standard deviation of the rows' improvements). ``differ`` counts the rows that the two answer differently; verdicts
    of earlier releases did not ask. ``more_rows``: further rows that would decide, where they are found by resampling.
    ``unchecked`` names declared slices without a verdict: too few rows, or the metric is not defined on them.
    ``same_candidate`` says that champion and challenger are one model. Without a champion ``baseline`` says what the
    opponent is, in words that follow "the training rows'".
    """

    metric: str
    n: int
    positives: int
    opponent: Literal["champion", "base_rate"]
    same_candidate: bool = False
    lift: Interval | None
    lift_sd: float | None = None
    differ: int | None = None
    more_rows: int | None = None
    slices: tuple[SliceEvidence, ...] = ()
    unchecked: tuple[str, ...] = ()
    floors: tuple[FloorEvidence, ...] = ()
    baseline: str = "base rate"
    challenger: dict[str, float | None] = {}
    champion: dict[str, float | None] = {}

    @model_serializer(mode="wrap")
    def _as_written(self, written: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what an earlier release did not know, so that its verdicts keep their hash."""
        told: dict[str, Any] = written(self)
        return {name: part for name, part in told.items() if name not in LATER or name in self.model_fields_set}


class Verdict(Value):
    """The gate's immutable answer. A rejected candidate is a verdict, never an exception."""

    decision: Decision
    rule: str
    reason: str
    evidence: Evidence
    min_lift: float
    rows_needed: int | None = None


class FeatureDrift(Value):
    """Drift of one feature between the reference and the current window.

    ``psi`` is in nats on frozen reference edges, ``debiased_psi`` subtracts its null expectation,
    ``ks`` is the largest CDF distance with ``ks_error`` its guaranteed bound, ``p_value`` belongs to
    the minimum-effect test of H0 "true PSI <= delta0", made with ``overdispersion`` (of the reference's own
    days; the effective sample is divided by it). An ``ignored`` field is shown and never decides.
    Shown beside: ``js`` (Jensen-Shannon distance, base 2), ``kl`` (of the window from the reference, nats, smoothed),
    ``wasserstein`` (in the feature's units, within ``wasserstein_error``; None of a category), ``chi2_p``.
    """

    feature: str
    psi: float
    debiased_psi: float
    ks: float | None
    ks_error: float | None
    p_value: float
    drifted: bool
    severity: Literal["info", "warn", "severe"]
    overdispersion: float = 1.0
    ignored: bool = False
    js: float = 0.0
    kl: float = 0.0
    wasserstein: float | None = None
    wasserstein_error: float | None = None
    chi2_p: float = 1.0


class Alert(Value):
    """One thing that somebody should know of, however often it is found again.

    ``key`` names it within its case: the rule and what it is about (an episode, a field). Alerts of one ``group`` (the
    episode that was open, else the rule) are told in one message. ``count`` counts the runs since ``first_seen`` that
    found it, ``quiet`` those in a row that did not; ``notified`` is the severity it was told with, None: not yet.
    """

    case: str
    key: str
    rule: AlertRule | RunRule
    group: str
    severity: Severity
    owner: str
    runbook: str
    summary: str
    first_seen: Instant
    last_seen: Instant
    count: int = 1
    quiet: int = 0
    state: Literal["open", "resolved", "silenced"] = "open"
    notified: Severity | None = None


class Notice(Value):
    """One message to every sink.

    The alerts of a group that opened, got more severe (``raised``) or were resolved at ``at``.
    """

    id: str
    case: str
    at: Instant
    group: str
    kind: Literal["opened", "raised", "resolved"]
    severity: Severity
    alerts: tuple[Alert, ...]


class Trial(Value):
    """What a rollout goes by, as it stands in each of its rows.

    ``candidate_key``, ``bundle``, ``mlflow_run``, ``verdict_hash``, ``trigger`` and ``as_of`` are the challenger's, as
    in :class:`Release`. ``plan`` are the parameters of the rollout (params.RolloutParams) when it was ``opened``; who
    changes them changes the next one. ``step`` is the position in the plan's steps, -1 in shadow; ``since``: when it
    began, or a bandit's weight within it, by the wall clock as ``opened``. ``held`` says why a person holds it,
    ``by_hand`` that a person started it, who may go against the verdict. ``evidence`` is what guard and experiment said
    for this row, ``evidence_hash`` the sha256 of all they looked at.
    """

    candidate_key: str
    bundle: str
    mlflow_run: str | None
    verdict_hash: str | None
    trigger: Trigger
    as_of: Instant
    plan: dict[str, Any]
    step: int
    opened: Instant
    since: Instant
    held: str = ""
    by_hand: bool = False
    evidence: dict[str, Any] = {}
    evidence_hash: str = ""


class Order(Value):
    """That a version shall serve a case, and why: the next row of its releases if ``after`` is still the newest one.

    ``after`` 0: the case has no release yet. The others are as in :class:`Release`.
    """

    case: str
    after: int
    champion: int
    candidate_key: str
    bundle: str
    action: Action
    trigger: Trigger
    reason: str
    actor: str
    as_of: Instant
    mlflow_run: str | None = None
    verdict_hash: str | None = None
    stage: Stage = "full"
    challenger: int | None = None
    weight: int = 10_000
    salt: str = ""
    trial: Trial | None = Field(default=None, exclude_if=lambda trial: trial is None)


class Release(Value):
    """One row of the release ledger: which version serves a case from here on, and why.

    ``candidate_key`` is the key of the exported artefact and ``bundle`` its folder; ``previous_hash``
    chains the rows, so that a changed history shows. While a rollout is under way ``challenger`` answers ``weight`` of
    10,000 keys, those that ``salt`` picks (arms.py), by its ``trial``; in a soak it has become the champion, and only
    the trial is left.
    """

    case: str
    seq: int
    champion: int
    candidate_key: str
    bundle: str
    action: Action
    trigger: Trigger
    reason: str
    actor: str
    mlflow_run: str | None
    verdict_hash: str | None
    as_of: Instant
    recorded_at: Instant
    stage: Stage = "full"
    challenger: int | None = None
    weight: int = 10_000
    salt: str = ""
    trial: Trial | None = Field(default=None, exclude_if=lambda trial: trial is None)
    """Not in the rows of earlier releases, which so keep their hashes."""
    previous_hash: str
    hash: str

    @property
    def trained(self) -> datetime:
        """The clock of the run that made the champion, of a row by which it came to serve."""
        return self.as_of if self.action != "promote" or self.trial is None else self.trial.as_of

    @property
    def contender(self) -> Release | None:
        """The row as if the challenger served: its version, artefact and verdict; None: none is on trial."""
        if self.challenger is None or self.trial is None:
            return None
        own = self.trial
        return self.model_copy(
            update={
                "champion": self.challenger,
                "candidate_key": own.candidate_key,
                "bundle": own.bundle,
                "mlflow_run": own.mlflow_run,
                "verdict_hash": own.verdict_hash,
                "challenger": None,
            }
        )


class Retirement(Value):
    """One row about whether a case is in service: by whom and why it was ``retired``, or (False) taken back."""

    case: str
    seq: int
    retired: bool
    reason: str
    actor: str
    recorded_at: Instant

    def __str__(self) -> str:
        return f"{self.case} is retired since {self.recorded_at:%Y-%m-%d %H:%M} UTC ({self.actor}: {self.reason})"


class Switch(Value):
    """What an order to let another version serve came to: ``serves`` answers now, by ``release``.

    ``before`` it the version ``was`` (None: none). ``changed`` is False where nothing had to be done: the order was
    carried out already.
    """

    case: str
    serves: int
    was: int | None
    changed: bool
    release: Release


class Finding(Value):
    """One thing that an audit of the ledger found.

    What is wrong with a ``row`` of a ``table`` (``artefacts``: with a file that it goes by).
    """

    case: str
    table: str
    row: str
    column: str = ""
    problem: str


ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._:/@+=-]{0,127}$"
"""What a ``prediction_id`` looks like."""
ELSEWHERE = 0
"""The version of rows that no model of ours answered: imported, or answered by a declared default.

Ours are numbered from 1.
"""

DEFAULT = "default"
"""The ``outcome`` of a line whose row was answered by the case's declared default."""


class PredictionLine(TypedDict):
    """One row of the prediction log, a JSON line in ``prediction_log/<case>/predictions/<segment>.jsonl``.

    A segment that is still written to ends in ``.jsonl.open``; readers see closed ones only. ``row`` holds
    the raw feature values, ``score`` the probability of the positive class, times are ISO 8601 in UTC.
    In a case with classes ``prediction`` is the position of the likeliest class, ``score`` its probability,
    and ``scores`` holds those of all classes in their declared order. In a case that predicts a number both
    ``prediction`` and ``score`` are that number. Imported rows are of version ``ELSEWHERE``; they have neither where
    nobody answered them. ``traceparent`` is that of the request (W3C Trace Context), if it had one. ``outcome`` is
    ``default`` where the case's declared default was answered (``serving.default``): no model gave what stands
    there, the version is ``ELSEWHERE``, and whoever reads the log sees a row that nobody answered. ``arm`` is the row's
    while a rollout is under way; the ``version`` is another one than the arm's where something stood in.
    """

    prediction_id: str
    request_id: str
    event_time: str
    received_at: str
    version: int
    score: float | None
    prediction: int | float | None
    row: dict[str, str | float | int | bool | list[float] | None]
    scores: NotRequired[list[float]]
    traceparent: NotRequired[str]
    outcome: NotRequired[str]
    arm: NotRequired[Arm]


class TrafficLine(TypedDict):
    """What one worker's requests came to between two moments of receipt, a JSON line in ``.../traffic/``; lines add up.

    There are lines while a rollout is under way, of each ``arm`` and the ``version`` that it leads to; of ``shadow``
    the rows that were mirrored. ``outcomes`` counts rows: ``ok``, ``fallback`` (another version or a default stood in),
    ``error`` and ``timeout`` (no answer), ``refused`` (not as declared), ``late`` (turned away, or answered by another
    one, as more waited than could be answered in time: no version's fault), and in shadow ``dropped``. ``latency``
    counts requests by their milliseconds, ``scores`` rows by their scores, both by the bins of arms.py (keys of JSON).
    """

    begin: str
    end: str
    arm: Literal["champion", "challenger", "shadow"]
    version: int
    requests: int
    outcomes: dict[str, int]
    latency: dict[str, int]
    scores: dict[str, int]


class ShadowLine(TypedDict):
    """A row that both versions of a rollout answered, a JSON line in ``.../shadow/``.

    ``arm`` is whose answer was given, the other one came after the reply; ``ms`` is how long that took. Scores are as
    in :class:`PredictionLine`, None where that version did not answer.
    """

    prediction_id: str
    event_time: str
    received_at: str
    arm: Arm
    champion: int
    challenger: int
    champion_score: float | None
    challenger_score: float | None
    champion_scores: NotRequired[list[float]]
    challenger_scores: NotRequired[list[float]]
    ms: float


class LabelLine(TypedDict):
    """One label, a JSON line in ``prediction_log/<case>/labels/<segment>.jsonl``.

    ``label`` is 0 or 1, the class's position, or the number. ``event_time`` is the label's arrival in event time, as it
    is stated; the highest ``revision`` that has arrived counts in trainings. A drift run counts each row's label once
    (drift/labels/arrived.py).
    """

    prediction_id: str
    label: int | float
    revision: int
    event_time: str
    received_at: str


FIGURE_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,63}$"
"""What the name of a business figure looks like: a letter, then letters, digits and _."""


class FigureLine(TypedDict):
    """What a prediction came to in the business, like its revenue, a JSON line in ``.../figures/<segment>.jsonl``.

    ``name`` says what it is, ``value`` is a finite number. ``event_time`` is when it became known, as it is stated; the
    highest ``revision`` of a prediction's figure counts. No model learns from figures, and no drift run sees them.
    """

    prediction_id: str
    name: str
    value: float
    revision: int
    event_time: str
    received_at: str


class RefusalLine(TypedDict):
    """How many rows were refused, a JSON line in ``prediction_log/<case>/refusals/<segment>.jsonl``; lines add up.

    ``hour`` is the beginning of an hour of event time, or of receipt where a row names no time that it can have.
    ``arm`` and ``version`` say who would have answered (no version: there was no champion), ``field`` and ``reason``
    what was found first ("": it is about no declared field). What the rows held is not kept.
    """

    hour: str
    arm: str
    version: int | None
    field: str
    reason: str
    rows: int
    received_at: str


class Refusal(Value):
    """Rows of one hour that were refused for one reason, see :class:`RefusalLine`."""

    hour: Instant
    arm: str
    version: int | None
    field: str
    reason: str
    rows: int


class Arrived(Value):
    """The rows that came in a window: those that were ``answered``, by the beginning of their hour, and the refused."""

    answered: dict[Instant, int] = {}
    refused: tuple[Refusal, ...] = ()
