"""A bundle as MLflow holds it: registered by itself, and loaded by the code that goes with it."""

from __future__ import annotations

import importlib
import sys
from contextlib import contextmanager
from datetime import UTC, datetime

from pipelines import answering
from pipelines.cases import load_fields
from pipelines.registry import code, register


def recorded(settings, case, bundle):
    """The number of the version that a committed ``bundle`` becomes in MLflow, of a training that nobody knows more of.

    A file beside it stands for the training's curves.
    """
    steps = bundle.parent / "metrics.jsonl"
    steps.write_text("")
    known = {"params": {}, "metrics": {"log_loss": 0.5}, "curves": {}, "tags": {}, "dataset": {}, "artefacts": ()}
    about = {"train": "t", "dataset_key": "d" * 64, "about": "a test", "steps": steps}
    as_of = datetime(2024, 1, 1, tzinfo=UTC)
    candidate = register.Candidate(
        case=case, fields=load_fields(case), as_of=as_of, key=f"key of {bundle}", bundle=bundle, **known, **about
    )
    return register.record(settings, candidate)[1]


@contextmanager
def packed(folder, bundle):
    """The model of a ``bundle`` by the code that is written below ``folder``, which stays there."""
    name = code.write(answering.__name__, folder)
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(name)._load_pyfunc(str(bundle))
    finally:
        sys.path.remove(str(folder))
        for module in [one for one in sys.modules if one.split(".")[0] == name.split(".")[0]]:
            del sys.modules[module]
