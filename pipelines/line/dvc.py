"""The line by hand: dvc.yaml, written from the steps' declarations (`make dvc-yaml`); a test holds that it is current.

A stage of DVC runs again when a file that its step can reach, a parameter that it declares or a folder that it reads
has changed. Whether there is anything to do is then the step's own business: with an unchanged key it is a no-op.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipelines import imports
from pipelines.case_files import own_profile
from pipelines.cases.code import modules
from pipelines.line.order import REGISTER, TRAINING
from pipelines.line.rooms import rooms
from pipelines.line.step import Step
from pipelines.params_file import read_yaml

FILE = imports.ROOT / "dvc.yaml"
CASE, AS_OF = "loans", "2020-05-01"
RUN = f"runs/dvc/artefacts/{CASE}/20200501T000000Z"
SETTINGS = f"pipelines/cases/{CASE}/params.yaml"
PINNED = "data/loans.parquet"
"""The rows of data.dvc."""
REPRODUCED = tuple(step for step in TRAINING[: TRAINING.index(REGISTER)] if isinstance(step, Step))
"""The steps that need no service: up to the verdict."""
HEAD = """\
# Written by `make dvc-yaml` from pipelines/line/order.py: change it there.
# The line by hand, without Airflow: `dvc pull && make repro`. It reads the pinned rows of data.dvc and keeps its state
# (artefacts, lake, ledger) in runs/dvc. Folders persist: a step whose key is unchanged is a no-op. dvc.lock is this
# machine's memory of its runs (manifests carry times): it is not committed, and DVC does not let git ignore it.
"""


def text() -> str:
    """dvc.yaml as the declarations have it."""
    return HEAD + yaml.safe_dump(described(), sort_keys=False, width=120)


def described() -> dict[str, Any]:
    """Variables and stages."""
    here = "PERENNIAL_HOME=runs/dvc PERENNIAL_DATA_DIR=data PERENNIAL_LEDGER_URL= PERENNIAL_MLFLOW_URL="
    variables = {"case": CASE, "as_of": AS_OF, "run": RUN, "here": here, "settings": SETTINGS}
    return {"vars": [variables], "stages": {step.name: _stage(step) for step in REPRODUCED}}


def _stage(step: Step) -> dict[str, Any]:
    pinned = [PINNED] if step is REPRODUCED[0] else []
    said = read_yaml(imports.ROOT / SETTINGS)
    given = [name for name in step.params if _is_given(said, name)]
    # DVC refuses a parameter that the file leaves out; the file itself tells when it is given.
    whole = [SETTINGS] if len(given) < len(step.params) else []
    folders = [f"${{run}}/{made.name}" for made in (*step.reads, *step.looks_at)]
    stage: dict[str, Any] = {
        "cmd": f"${{here}} python -m pipelines {step.name} --case ${{case}} --as-of ${{as_of}}",
        "deps": [*pinned, *whole, *folders, *sources(step)],
    }
    if given:
        stage["params"] = [{"${settings}": given}]
    stage["outs"] = [{f"${{run}}/{step.name}": {"cache": False, "persist": True}}]
    return stage


def _is_given(value: Any, name: str) -> bool:
    """Whether a file's values have the parameter of a dotted name."""
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def sources(step: Step) -> list[str]:
    """The files whose change may change what a step does, from the repository's root: its rooms, and the case's own."""
    found = {*rooms(step).values(), *_of_case()}
    return sorted(str(path.relative_to(imports.ROOT)) for path in found)


def _of_case() -> list[Path]:
    own = [path for path in map(imports.file_of, modules(CASE)) if path is not None]
    folder = imports.ROOT / "pipelines" / "cases" / CASE
    scales = own_profile(CASE)
    return [*own, *folder.glob("*.py"), *([scales] if scales else [])]


if __name__ == "__main__":
    FILE.write_text(text())
