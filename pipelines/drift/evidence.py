"""What the policy may look at in a window, what it answers, and what it remembers: plain values, declared once."""

from __future__ import annotations

from pydantic import Field

from pipelines.contracts import EpisodeTrigger, FeatureDrift, Instant, Interval, Mean, Value
from pipelines.drift_report import Action, Headroom, HeldBy, Mark, Outcome, Retrained, Rule, State


class LabelEvidence(Value):
    """Labels that count since the last window (drift/labels/arrived.py), of rows that the champion scored.

    ``baseline`` is the error rate that counts as unchanged; ``drop`` the rise of the ``loss`` over the holdout's.
    ``log_e``: the log of the e-value of these rows against "no worse than the baseline" (None: nothing speaks), over
    how many of them say as much as one, as rows of a day are alike (measures.design_effect; a quasi-likelihood's
    dispersion: McCullagh, Annals of Statistics 11(1), 1983).
    """

    rows: int = 0
    errors: int = 0
    baseline: float | None = None
    drop: Interval | None = None
    log_e: float | None = None
    loss: str = "log-loss"


class Gain(Value):
    """What a probe would have saved in one window, in nats: against the champion, and against a probe of its time."""

    end: Instant
    champion: Mean | None = None
    own_past: Mean | None = None


class DriftEvidence(Value):
    """All that the policy may look at in one window.

    ``features`` is empty when there were too few rows (``thin``). ``labelled`` maps the window ends in the history to
    the share of their rows whose label is mature. ``fresh_labels`` counts rows whose label became known since the
    champion was trained, ``training_rows`` what it was trained on; ``outcome`` says what became of the retraining that
    was asked for last, ``meanwhile`` who let which version serve since, if somebody else did. ``unread`` rows of the
    window lie where they cannot be read yet: then it is ``thin``, as a part of a window is no season. ``headroom`` is
    what a probe found.
    """

    champion: int
    training_rows: int
    thin: bool = False
    unread: int = 0
    problems: tuple[str, ...] = ()
    features: tuple[FeatureDrift, ...] = ()
    labels: LabelEvidence = LabelEvidence()
    labelled: dict[str, float] = Field(default_factory=dict)
    fresh_labels: int = 0
    outcome: Outcome = "none"
    meanwhile: str = ""
    headroom: Headroom = Headroom()


class PolicyState(Value):
    """Everything that the next step needs. JSON in the ledger.

    ``marks`` are the last windows with enough rows, ``drops`` say of the last windows with labels whether the metric
    had dropped; ``clean`` counts clean windows in a row, ``log_e`` is the e-CUSUM. ``trigger`` says what opened the
    newest episode, ``verdict`` what became of its retraining (``missing``: it gave none in time), ``tried_labels`` how
    many labelled rows were new to the champion when it was asked for. ``rule`` is ``reason`` in a machine's word (None:
    not recorded). ``gains`` are those of the last windows with a figure, ``grown`` is the e-CUSUM against "a retraining
    gains no more than its price". ``would`` names what had reason to open an episode in this window, listened to or
    not, for people to compare. ``held_back`` counts the windows in a row in which a gain was above its price and no
    retraining was asked for, because of ``held_by``.
    """

    name: State = State.STABLE
    champion: int
    end: Instant
    marks: tuple[Mark, ...] = ()
    drops: tuple[bool, ...] = ()
    gains: tuple[Gain, ...] = ()
    grown: float = 0.0
    would: tuple[EpisodeTrigger, ...] = ()
    held_back: int = 0
    held_by: HeldBy | None = None
    clean: int = 0
    log_e: float = 0.0
    alarmed: bool = False
    episode: str | None = None
    trigger: EpisodeTrigger | None = None
    verdict: Retrained = "none"
    tried_labels: int = 0
    retrained_at: Instant | None = None
    retrains: tuple[Instant, ...] = ()
    cooldown_days: float
    cooldown_until: Instant | None = None
    resume: State = State.STABLE
    action: Action = "none"
    rule: Rule | None = None
    reason: str = ""
    path: tuple[State, ...] = ()
