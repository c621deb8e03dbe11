"""The steps of the loop and their order, as data.

DAGs, command line, dvc.yaml, lineage, links and replays read it here.
"""

from __future__ import annotations

from pipelines.line import facts
from pipelines.line.step import Action, Step

INGEST = Step(
    name="ingest",
    version=5,
    about="bring the rows that this run may need into immutable day partitions.",
    facts=facts.IngestFacts,
    params=(
        "training_rows",
        "label_delay_days",
        "source",
        "dataset.window_days",
        "dataset.min_rows",
        "dataset.fallback_rows",
        "dataset.max_bad_share",
        "dataset.replay_share",
        "dataset.history_rows",
    ),
    runs_case=True,
    makes="data",
)
VALIDATE = Step(
    name="validate",
    version=4,
    about="rows that keep the case's contract go on, the others are quarantined with their reasons.",
    facts=facts.ValidateFacts,
    reads=(INGEST,),
    params=("dataset.max_bad_share",),
)
DATASET = Step(
    name="dataset",
    version=3,
    about="choose the labelled rows of this run, and split them into training rows and holdout.",
    facts=facts.DatasetFacts,
    reads=(VALIDATE,),
    params=("dataset",),
    uses="data",
    makes="dataset",
)
TRAIN = Step(
    name="train",
    version=6,
    about="fit the case's model to the training rows, in this process or on several ranks.",
    facts=facts.TrainFacts,
    reads=(DATASET,),
    params=("model", "train", "resources.gpus"),
    runs_case=True,
    takes=("trigger", "reason"),
    buttons=("MLflow run", "Grafana"),
)
EXPORT = Step(
    name="export",
    version=12,
    about="turn the weights into the bundle that is judged, shipped and served.",
    facts=facts.ExportFacts,
    reads=(DATASET, TRAIN),
    params=("model", "export", "label_delay_days", "drift.min_rows", "train.seed", "gate.slices"),
    runs_case=True,
)
EVALUATE = Step(
    name="evaluate",
    version=4,
    about="score the holdout with the bundle that would ship, and with the champion's, on ONNX Runtime.",
    facts=facts.EvaluateFacts,
    reads=(DATASET, EXPORT),
    params=("gate.slices", "gate.baseline", "gate.metric", "gate.quantile"),
)
GATE = Step(
    name="gate",
    version=5,
    about="decide on the evidence, write the verdict, and enter it in the ledger.",
    facts=facts.GateFacts,
    reads=(EVALUATE,),
    params=("gate", "dataset.min_holdout"),
    takes=("trigger",),
    buttons=("Gate report",),
)
REGISTER = Step(
    name="register",
    version=4,
    about="record the judged candidate in MLflow, whatever the verdict: one run, one model version.",
    facts=facts.RegisterFacts,
    reads=(GATE, EXPORT),
    looks_at=(DATASET, TRAIN, EVALUATE),
    files={TRAIN.name: ("record.json", "metrics.jsonl", "trials.json"), EXPORT.name: ("bundle.json",)},
    takes=("trigger",),
    uses="dataset",
    makes="model",
    buttons=("Model version",),
)
ROLLOUT = Step(
    name="rollout",
    version=2,
    about="let a promoted candidate serve, at once, or begin its rollout in stages.",
    facts=facts.RolloutFacts,
    reads=(EXPORT, GATE, REGISTER),
    looks_at=(DATASET, EVALUATE),
    takes=("trigger",),
    uses="model",
    makes="release",
    buttons=("Grafana",),
    event="trial",
)
TICK = Action(
    name="tick",
    about="move a case's rollout on by what its traffic says: at most one row of the ledger.",
    takes=("as_of",),
)
RECONCILE = Action(
    name="reconcile",
    about="make Triton and MLflow's aliases say what the ledger says. Running it again changes nothing.",
)
PROFILE = Step(
    name="profile",
    version=6,
    about="count the rows that were served in the drift window, hour by hour, into profiles that add up to days.",
    facts=facts.ProfileFacts,
    uses="release",
)
HEADROOM = Step(
    name="headroom",
    version=3,
    about="measure what a retraining would gain, by a cheap probe beside the champion on the newest labelled rows.",
    facts=facts.HeadroomFacts,
    looks_at=(PROFILE,),
    params=("headroom", "label_delay_days", "dataset.window_days", "gate.slices"),
    runs_case=True,
)
DRIFT = Step(
    name="drift",
    version=21,
    about="compare the window with what the champion was trained on, step the policy once, and say what to do.",
    facts=facts.DriftFacts,
    reads=(PROFILE,),
    params=("drift",),
    buttons=("Drift report", "Grafana"),
    event="retrain",
)
ALERT = Step(
    name="alert",
    version=6,
    about="tell people what a drift run found, once; nothing hangs on it, least of all a retraining.",
    facts=facts.AlertFacts,
    reads=(DRIFT,),
)
REPORT = Step(
    name="report",
    version=9,
    about="one page for people about the drift window, its past and what was done; nothing hangs on it.",
    facts=facts.ReportFacts,
    reads=(DRIFT,),
    looks_at=(PROFILE,),
    buttons=("Daily page", "Evidently report"),
)
RELEASE = Action(
    name="release",
    about="a version that is known serves, because a person names it.",
    needs=("version", "reason"),
    takes=("as_of", "despite_verdict"),
    told=("actor",),
)
ROLLBACK = Action(
    name="rollback",
    about="the release below the champion serves again.",
    needs=("reason",),
    takes=("as_of", "from_version"),
    told=("actor",),
    makes="release",
)

TRAINING = (INGEST, VALIDATE, DATASET, TRAIN, EXPORT, EVALUATE, GATE, REGISTER, ROLLOUT, RECONCILE)
"""The tasks of a training run, one after the other."""
WATCHING = (PROFILE, HEADROOM, DRIFT)
"""What a drift run decides by; ``retrain``, the event that closes the loop, and RECONCILE follow.

DRIFT takes what HEADROOM left, and goes without it where that failed.
"""
TELLING = (ALERT, REPORT)
"""The tasks of a drift run that tell people: they follow DRIFT, and nothing of the loop follows them."""
BY_HAND = (ROLLBACK, RELEASE)
"""What only people order."""
ALL: tuple[Step | Action, ...] = (*TRAINING[:-1], *WATCHING, *TELLING, TICK, RECONCILE, *BY_HAND)
"""Every step and action, in the order of the line."""
BY_NAME = {step.name: step for step in ALL}
STEPS = tuple(step for step in ALL if isinstance(step, Step))
"""Those that leave a folder."""
STEP_BY_NAME = {step.name: step for step in STEPS}
