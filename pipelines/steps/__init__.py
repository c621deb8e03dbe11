"""The verbs of the loop, one file each: load -> call a room -> save.

The order of the line, as data: the DAGs, dvc.yaml and the demo follow it, and a test holds them to it.
"""

TRAINING = ("ingest", "validate", "dataset", "train", "export", "evaluate", "gate", "register", "rollout", "reconcile")
"""The tasks of a training run."""

TELLING = ("alert", "report")
"""The tasks of a drift run that tell people: they follow ``drift``, and nothing of the loop follows them."""

DRIFT = ("profile", "drift", *TELLING, "retrain", "reconcile")
"""The tasks of a drift run; ``retrain`` is no step but the event that closes the loop."""
