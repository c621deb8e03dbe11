"""The report of one drift window and its parts: what rooms, steps, alerts, metrics and pages read of it.

At the end stands what a page says of the window's counts beside the report.

Each part is a frozen value with a default for everything, so that reports which earlier releases wrote can be read:
what they lack has its default, and what no release knows any more is left out. A report's JSON is what
``drift/report.json`` holds.
"""

from __future__ import annotations

from collections import Counter
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from pipelines.amounts import spread
from pipelines.contracts import EpisodeTrigger, FeatureDrift, Instant, Interval, Mean, Value, Window

FILE = "report.json"
"""What the drift step leaves in its folder."""
HEADROOM_FILE = "headroom.json"
"""What the headroom step leaves in its folder."""


class State(StrEnum):
    """What a window left the case in.

    The retrain policy's states (drift/policy.py), and those of a window that was not judged.
    """

    STABLE = "STABLE"
    WATCH = "WATCH"
    CONFIRMED = "CONFIRMED"
    RETRAINING = "RETRAINING"
    COOLDOWN = "COOLDOWN"
    BLOCKED_DATA_QUALITY = "BLOCKED_DATA_QUALITY"
    NO_CHAMPION = "NO_CHAMPION"
    NOT_SERVED = "NOT_SERVED"


UNJUDGED = (State.NO_CHAMPION, State.NOT_SERVED)
"""States of a window that was not judged.

No champion yet, or the window ended before the case's first row or first champion.
"""
JUDGED = tuple(state for state in State if state not in UNJUDGED)
"""States of the policy."""
Action = Literal["none", "alert", "retrain"]
"""What a window asks for: nothing, a person's eyes, or a training."""
Outcome = Literal["none", "pending", "promoted", "kept", "overtaken"]
"""What became of the retraining that was asked for last; overtaken: not promoted, and another version came to serve."""
Retrained = Literal["none", "promoted", "kept", "overtaken", "missing"]
"""What became of an episode's retraining; missing: it gave no verdict in time."""
Rule = Literal[
    "unjudged",
    "reported_only",
    "data_quality",
    "errors_rose",
    "loss_rose",
    "inputs_and_loss",
    "inputs_severe",
    "outputs_moved",
    "gain_above_price",
    "gain_kept_up",
    "new_rows",
    "moved_once",
    "calmed",
    "unread",
    "few_rows",
    "quiet",
    "waits_for_labels",
    "too_many_retrainings",
    "confirmed_before",
    "waits_for_verdict",
    "retrained",
    "cooling",
]
"""What of the policy decided: the machine's word beside ``reason``."""
HeldBy = Literal["trigger_off", "cooldown", "labels", "budget", "verdict", "data_quality"]
"""What keeps a retraining from being asked for that would gain more than it costs.

The case does not listen to headroom, a retraining was a short time ago, too few labels are new, enough retrainings were
asked for, the one that was asked for has no verdict yet, or the window's rows are wrong.
"""
Movement = Literal["moved", "steady", "unknown"]
Held = Literal["dropped", "held", "unknown"]
Shift = Literal["none", "unknown", "covariate", "label", "concept", "covariate and concept", "data quality"]
RemarkCode = Literal[
    "missing_values",
    "no_rows",
    "refused",
    "few_rows",
    "volume",
    "unread",
    "other_features",
    "decided_on_other_rows",
    "not_known",
]
"""What a remark on a window's rows is about; not_known: an earlier release wrote a sentence only."""


class Part(BaseModel):
    """A part of the report: immutable, and open to keys of other releases, which are left out."""

    model_config = ConfigDict(frozen=True, extra="ignore")


# --- rows ---------------------------------------------------------------------------------------


class Remark(Part):
    """One thing that is to be said of a window's rows.

    A ``code`` for programs, the ``field`` if it is about one, a sentence for people.
    """

    code: RemarkCode
    message: str
    field: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _sentence(cls, value: Any) -> Any:
        return {"code": "not_known", "message": value} if isinstance(value, str) else value

    def __str__(self) -> str:
        return self.message


class RefusedFor(Part):
    """Rows that were refused for one ``reason``: the ``field`` that it is about ("": no declared one).

    ``arm`` and ``version`` would have answered them (None: there was no champion).
    """

    field: str = ""
    reason: str = ""
    rows: int = 0
    arm: str = ""
    version: int | None = None


class Stretch(Part):
    """Hours that follow each other: so many rows ``came`` in them, so many of these were ``refused``."""

    start: Instant
    end: Instant
    came: int
    refused: int
    reasons: tuple[RefusedFor, ...] = ()

    @property
    def share(self) -> float:
        """The share that was refused."""
        return self.refused / self.came if self.came else 0.0


class Refused(Part):
    """The window's rows that the gateway refused (drift/inputs/refused.py), and their share of all that came.

    They are not in the log. ``worst`` is the stretch of the window in which the largest share was refused; None: too
    few were, anywhere, to say something.
    """

    rows: int = 0
    share: float = 0.0
    reasons: tuple[RefusedFor, ...] = ()
    worst: Stretch | None = None


class Quality(Part):
    """What is wrong with a window's rows (drift/inputs/compare.py).

    ``problems`` block and never retrain, ``warnings`` are told only. ``missing`` is the share of missing or undeclared
    values of each field that has some, ``volume`` how many times the usual rows there were; so many rows are
    ``unread``, and others were ``refused``. ``page`` is the file that Evidently drew, or ``page_error`` says why
    there is none.
    """

    problems: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()
    missing: dict[str, float] = {}
    volume: float | None = None
    unread: int = 0
    refused: Refused = Refused()
    page: str | None = None
    page_error: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_key(cls, value: Any) -> Any:
        """Earlier releases put the error where the page's name stands."""
        if isinstance(value, dict) and str(value.get("page") or "").startswith("could not"):
            return {**value, "page": None, "page_error": value["page"]}
        return value


# --- labels -------------------------------------------------------------------------------------


class Corrections(Part):
    """Labels that were counted before and are corrected since: how many, and how many more errors there are by them."""

    rows: int = 0
    errors: int = 0


class Labels(Part):
    """What arrived labels say (drift/labels/served.py).

    What the policy got, and what only people get (``corrections``, ``young``).

    ``labelled``: by window end, the share of rows with a mature label.
    """

    rows: int = 0
    errors: int = 0
    baseline: float | None = None
    drop: Interval | None = None
    labelled: dict[Instant, float] = {}
    fresh_labels: int = 0
    training_rows: int = 0
    corrections: Corrections = Corrections()
    young: int = 0


# --- headroom -----------------------------------------------------------------------------------

HeadroomCode = Literal[
    "measured",
    "not_measured",
    "no_champion",
    "not_served",
    "no_labels",
    "few_rows",
    "few_to_learn",
    "one_class",
    "probe_failed",
]
"""Whether there is a figure, and if not why; not_measured: nobody asked, or an earlier release wrote the report."""


class SliceGain(Part):
    """The gain on one slice of the window's rows."""

    field: str
    value: str
    rows: int
    gain: Interval


class Beside(Part):
    """A metric of champion and probe on the same rows; they are compared by the log-loss, this one is shown."""

    metric: str
    champion: float
    probe: float


class Headroom(Part):
    """What a retraining would gain now, measured by a cheap probe beside the champion (pipelines/headroom).

    A probe of this ``family`` ``learned`` from labelled rows older than ``window``, and answers the window's labelled
    ``rows``, of ``days`` UTC days, that are newer than what the champion was trained on: a share of ``coverage`` of
    what was served there. ``gain`` is the champion's mean log-loss minus the probe's, in nats, on the rows that the
    champion ``answered``. ``own_past`` is that of a second probe, fitted on what the champion was trained on, on all
    rows: what newer rows give to one family, whatever the champion is made of. ``against`` says which of both decides.
    ``estimate`` and ``own_estimate`` are both as they pool with other windows; ``log_e`` is the log of the e-value
    against "a retraining gains no more than ``price``", of the one that decides, and so are ``errors``, the gain in the
    share of wrong answers, and ``slices``. Of a number gains are of the squared error. All of them have
    the ``unit``, intervals the ``confidence``. The drift step adds what hangs on other windows: ``pooled`` over the
    last ``pooled_of`` of them, ``own_pooled`` likewise, what the one that decides is at ``least``, beyond doubt, and
    ``grown``, the running e-process. Without a figure ``code`` and ``why`` say what was in the way.
    """

    code: HeadroomCode = "not_measured"
    why: str = ""
    window: Window | None = None
    rows: int = 0
    days: int = 0
    answered: int = 0
    coverage: float | None = None
    learned: int = 0
    family: str = ""
    against: Literal["past", "champion"] = "champion"
    price: float = 0.0
    confidence: float = 0.95
    unit: str = "nats"
    gain: Interval | None = None
    estimate: Mean | None = None
    own_past: Interval | None = None
    own_estimate: Mean | None = None
    log_e: float = 0.0
    errors: Interval | None = None
    metrics: tuple[Beside, ...] = ()
    slices: tuple[SliceGain, ...] = ()
    pooled: Interval | None = None
    own_pooled: Interval | None = None
    pooled_of: int = 0
    least: float | None = None
    grown: float = 0.0

    def told(self, found: Interval) -> str:
        """A gain beside its price, as all sentences about it say it.

        >>> Headroom(price=0.02).told(Interval(value=0.08, low=0.05, high=0.11))
        '0.080 nats (0.050 to 0.110), it costs 0.02'
        """
        return f"{spread(found, self.unit)}, it costs {self.price:g}"

    @property
    def decides(self) -> Interval | None:
        """The gain that is held against the price: over the last windows where that is known, else of this one."""
        if self.against == "past":
            return self.own_past and (self.own_pooled or self.own_past)
        return self.gain and (self.pooled or self.gain)

    @property
    def pays(self) -> bool:
        """Whether the gain is above the price with confidence, and above nothing beyond doubt where that is known."""
        known = self.decides
        return known is not None and known.low > self.price and (self.least is None or self.least > 0)

    def deciding(self, champion: Mean | None, past: Mean | None) -> Mean | None:
        """Of the two figures, however they were pooled, the one that decides."""
        return past if self.against == "past" else champion


# --- the policy ---------------------------------------------------------------------------------


class Mark(Value):
    """What the inputs of one window showed: the features that drifted, and those of them that did severely."""

    end: Instant
    drifted: tuple[str, ...] = ()
    severe: tuple[str, ...] = ()


class Earlier(Value):
    """The judgement on fewer rows whose place another one took: when it was made, and on how many."""

    as_of: Instant
    rows: int


class Policy(Part):
    """What a report tells of the policy's state (drift/policy.py) beside its name, action, reason and episode.

    ``rule`` is the machine's word for the reason, ``kind`` the diagnosis'. ``would`` names what had reason to open an
    episode in this window, listened to or not. ``held_back`` counts the windows in a row in which a retraining would
    have gained more than it costs and none was asked for, because of ``held_by`` (None: there is none to ask for).
    ``judged_again`` and ``revision`` are drift/past.py's.
    """

    rule: Rule | None = None
    kind: Shift | None = None
    path: tuple[State, ...] = ()
    trigger: EpisodeTrigger | None = None
    verdict: Retrained = "none"
    log_e: float = 0.0
    alarmed: bool = False
    clean: int = 0
    marks: tuple[Mark, ...] = ()
    drops: tuple[bool, ...] = ()
    would: tuple[EpisodeTrigger, ...] = ()
    held_back: int = 0
    held_by: HeldBy | None = None
    retrained_at: Instant | None = None
    cooldown_days: float | None = None
    cooldown_until: Instant | None = None
    judged_again: Earlier | None = None
    revision: int = 1


# --- the diagnosis ------------------------------------------------------------------------------


class MovedFeature(Part):
    """A feature that moved, and how far: its debiased PSI in nats."""

    feature: str
    debiased_psi: float
    severity: Literal["info", "warn", "severe"]


class HitSlice(Part):
    """A slice whose metric dropped."""

    field: str
    value: str
    rows: int
    drop: Interval


class MixtureShares(Part):
    """The classes' shares that explain the window's inputs best, and the features that they do not explain."""

    shares: tuple[float, ...] = ()
    unexplained: tuple[str, ...] = ()


class LabelMovements(Part):
    """Whether the arrived labels' shares of the classes moved, and the score given the class."""

    shares: Movement = "unknown"
    score_given_class: Movement = "unknown"


class Embeddings(Part):
    """How far a text's projections moved: mean and largest KL in nats; from ``threshold`` on they count as moved."""

    kl: float
    most: float
    threshold: float


class Diagnosis(Part):
    """What moved, since when and why (drift/why/diagnosis.py).

    ``performance`` is None in reports that knew no diagnosis.
    """

    kind: Shift = "unknown"
    why: str = ""
    inputs: Movement = "unknown"
    outputs: Movement = "unknown"
    performance: Held | None = None
    features: tuple[MovedFeature, ...] = ()
    slices: tuple[HitSlice, ...] = ()
    dates: tuple[date, ...] = ()
    since: date | None = None
    mixture: MixtureShares | None = None
    labels: LabelMovements | None = None
    embeddings: Embeddings | None = None


# --- performance --------------------------------------------------------------------------------


class Figures(Part):
    """How a version did on rows whose labels may be missing (drift/labels/performance.py).

    Of a number ``rmse`` and ``mae`` in its unit, of all else the others. None of fewer than two labels.
    """

    rows: int = 0
    labelled: int = 0
    coverage: float | None = None
    delay_days: float | None = None
    log_loss: float | None = None
    low: float | None = None
    high: float | None = None
    accuracy: float | None = None
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    roc_auc: float | None = None
    roc_auc_low: float | None = None
    roc_auc_high: float | None = None
    macro_f1: float | None = None
    macro_f1_low: float | None = None
    macro_f1_high: float | None = None
    rmse: float | None = None
    rmse_low: float | None = None
    rmse_high: float | None = None
    mae: float | None = None
    mae_low: float | None = None
    mae_high: float | None = None

    @property
    def main(self) -> Interval | None:
        """The metric that the case is shown by, log-loss or RMSE, with its interval; None of fewer than two labels."""
        found = (self.log_loss, self.low, self.high)
        if self.rmse is not None:
            found = (self.rmse, self.rmse_low, self.rmse_high)
        value, low, high = found
        if value is None or low is None or high is None:
            return None
        return Interval(value=value, low=low, high=high)


class WindowFigures(Figures):
    """The figures of one version in one window."""

    start: Instant
    end: Instant
    version: int


class SliceFigures(Part):
    """The metric of one slice, and where the holdout knows it the ``drop`` of the loss from there."""

    field: str
    value: str
    rows: int = 0
    labelled: int = 0
    coverage: float | None = None
    delay_days: float | None = None
    log_loss: float | None = None
    low: float | None = None
    high: float | None = None
    rmse: float | None = None
    rmse_low: float | None = None
    rmse_high: float | None = None
    drop: Interval | None = None
    dropped: bool = False


class Estimate(Part):
    """What the loss of a window's rows will be if only the inputs have moved."""

    rows: int = 0
    labelled: int = 0
    coverage: float | None = None
    log_loss: float
    error_rate: float | None = None
    low: float
    high: float


class PastEstimate(Part):
    """What was estimated of a past window beside what its labels then said; ``error``: realised minus estimated."""

    end: Instant
    rows: int = 0
    labelled: int = 0
    coverage: float | None = None
    delay_days: float | None = None
    estimated: float
    low: float
    high: float
    realised: float
    error: float
    inside: bool


class Performance(Part):
    """The metric on delayed labels (drift/labels/performance.py)."""

    rolling: tuple[WindowFigures, ...] = ()
    slices: tuple[SliceFigures, ...] = ()
    estimate: Estimate | None = None
    earlier: tuple[PastEstimate, ...] = ()


class Measure(Part):
    """What a case is measured by: ``loss``, whose rise is tested, and ``metric``, which is shown, with their units."""

    loss: str = "log-loss"
    loss_unit: str = "nats"
    metric: str = "log-loss"
    unit: str = "nats"

    @property
    def estimable(self) -> bool:
        """Whether the metric can be estimated without labels: probabilities say how sure they are, numbers do not."""
        return self.loss == "log-loss"


# --- the explanation ----------------------------------------------------------------------------


class Sides(Part):
    """Rows of both samples that were looked at."""

    reference: int
    current: int


class Share(Part):
    """A field's share of what tells two samples apart."""

    feature: str
    share: float


class Word(Part):
    """A word that tells two samples of texts apart; positive: there is more of it in the window."""

    word: str
    coefficient: float


class Vectors(Part):
    """Distances between two samples of hashed texts."""

    mmd: float
    p_value: float
    projection_kl: float
    centroid_cosine: float


class Explanation(Part):
    """What tells a window from the training rows (drift/why/explain.py): empty where nothing moved."""

    about: str = ""
    rows: Sides | None = None
    auc: Interval | None = None
    features: tuple[Share, ...] = ()
    words: tuple[Word, ...] = ()
    vectors: Vectors | None = None


class DriftReport(Value):
    """One drift window judged against the champion's reference.

    ``state``, ``action``, ``reason`` and ``episode`` are the policy's (drift/policy.py), ``policy`` its other facts:
    the path it took, cooldowns, the kind of shift. A window that is not judged has a state of ``UNJUDGED``.
    ``served_since`` is the event time of the first row that the case ever served (None: none, or not recorded).
    ``diagnosis`` says what moved, since when and why, ``performance`` how the model did where labels have arrived and
    is expected to do where not, ``explanation``, where something moved, what tells the window from the training rows:
    for people, nothing is decided by them. ``headroom`` is what a retraining would gain. ``measure`` names what the
    figures are.
    """

    case: str
    window: Window
    model_version: int | None
    reference_rows: int
    current_rows: int
    overdispersion: float
    features: tuple[FeatureDrift, ...]
    labels: Labels
    quality: Quality
    state: State
    action: Action
    reason: str
    episode: str | None = None
    served_since: Instant | None = None
    policy: Policy = Policy()
    diagnosis: Diagnosis = Diagnosis()
    performance: Performance = Performance()
    explanation: Explanation = Explanation()
    headroom: Headroom = Headroom()
    measure: Measure = Measure()

    def coverage(self) -> dict[Instant, float]:
        """The share of labelled rows by window end, of all versions that served in it.

        Of earlier reports the champion's alone.
        """
        rows, labelled = Counter[Instant](), Counter[Instant]()
        for one in self.performance.rolling:
            rows[one.end] += one.rows
            labelled[one.end] += one.labelled
        return {end: labelled[end] / rows[end] for end in rows if rows[end]} or self.labels.labelled


def read_report(folder: Path) -> DriftReport:
    """The report that the drift step left in its ``folder``. Raises FileNotFoundError if there is none."""
    return DriftReport.model_validate_json((folder / FILE).read_bytes())


def read_headroom(folder: Path) -> Headroom:
    """What the headroom step left in its ``folder``. Raises FileNotFoundError if there is nothing."""
    return Headroom.model_validate_json((folder / HEADROOM_FILE).read_bytes())


# --- beside the report --------------------------------------------------------------------------


class NumberChange(Part):
    """How a number changed: its quartiles (25%, median, 75%) before and in the window, in the field's units."""

    feature: str
    kind: Literal["number"] = "number"
    before: tuple[float, float, float]
    now: tuple[float, float, float]


class CategoryChange(Part):
    """The value whose share of the rows (0 to 1) changed most; None stands for all values that are not declared."""

    feature: str
    kind: Literal["category"] = "category"
    value: str | None
    before: float
    now: float


class DayDrift(Part):
    """One UTC day against the reference: its rows, and the debiased PSI (nats) of features with enough values."""

    day: date
    rows: int
    psi: dict[str, float]


class Counted(Part):
    """What a window's counts say beside its report (drift/why/shown.py).

    ``served``: rows by the version that answered them. ``days``: the last days, oldest first, of these ``features``;
    None where they cannot be compared, or too few of them have enough rows.
    """

    served: dict[int, int] = {}
    changes: tuple[NumberChange | CategoryChange, ...] = ()
    features: tuple[str, ...] = ()
    days: tuple[DayDrift, ...] | None = None
