"""The package: its public names, and a wheel that works where no repository is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import perennial
from pipelines.cases import sources
from tests import test_readme_case as readme
from tests.package import called, install_wheel

ROOT = Path(__file__).parents[1]
NAMES = {
    "Attribute",
    "Binary",
    "Categorical",
    "Classes",
    "Fields",
    "Flag",
    "Moment",
    "Number",
    "Numeric",
    "Source",
    "Text",
    "Vector",
    "canonical",
}
HEAVY = ("numpy", "polars", "torch", "pandas", "mlflow")


def test_the_public_names_are_these():
    """What cases import from `perennial` is there, all of it, and no name goes: cases of other repositories use it."""
    assert set(perennial.__all__) == NAMES
    assert all(hasattr(perennial, name) for name in NAMES)
    assert (perennial.Source, perennial.canonical) == (sources.Source, sources.canonical)
    with pytest.raises(AttributeError, match="choose one of"):
        perennial.Fieldz  # noqa: B018


def test_a_schema_stays_light():
    """What a schema imports from `perennial` brings none of the libraries of training."""
    code = f"import sys; from perennial import Fields, Numeric; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The `bin` of an environment with the wheel that the sdist gives, and this one's libraries: no download."""
    return install_wheel(tmp_path_factory.mktemp("package"))


@pytest.mark.slow
def test_the_console_script_has_all_commands(installed, tmp_path):
    """`perennial --help` names the steps, `perennial up --help` is the stack's."""
    said = " ".join(called([installed / "perennial", "--help"], tmp_path).split())
    assert said.startswith("usage: perennial ")
    assert all(word in said for word in ("ingest", "history", "up, down, status, doctor, tune and demo"))
    for command in ("up", "down", "status", "demo"):
        assert "--home" in called([installed / "perennial", command, "--help"], tmp_path)
    assert "--json" in called([installed / "perennial", "doctor", "--help"], tmp_path)
    assert "--write" in called([installed / "perennial", "tune", "--help"], tmp_path)


@pytest.mark.slow
def test_airflow_finds_its_files_in_the_wheel(installed, tmp_path):
    """DAGs and plugins are in the wheel, and Airflow is led to them and to cases by absolute paths."""
    code = (
        "import json; from pathlib import Path; from embedded.airflow import environment; "
        "from embedded.ports import Ports; print(json.dumps(environment(Path('home'), Ports.free())))"
    )
    env = json.loads(called([installed / "python", "-c", code], tmp_path, PERENNIAL_CASES="mine"))
    for name, file in (("DAGS", "perennial_training.py"), ("PLUGINS", "perennial_hosts.py")):
        folder = Path(env[f"AIRFLOW__CORE__{name}_FOLDER"])
        assert (folder / file).exists()
        assert folder.is_relative_to(installed.parent)
    assert Path(env["PYTHONPATH"]).name == "airflow_config"
    assert env["PERENNIAL_CASES"] == str(tmp_path / "mine")


@pytest.mark.slow
def test_an_installed_package_knows_that_it_is_no_checkout(installed, tmp_path):
    """It says what can be typed, brings Triton's lock, keeps Triton beside itself, and refuses the profile full."""
    code = (
        "import json; from embedded import full, triton; from pipelines import installation as known\n"
        "try: full.require()\n"
        "except Exception as error: refused = str(error)\n"
        "print(json.dumps([known.CHECKOUT, known.typed('up'), known.PROGRAM, known.search_path(), refused, "
        "triton.LOCK.read_text(), str(triton.VENV)]))"
    )
    *said, refused, lock, triton = json.loads(called([installed / "python", "-c", code], tmp_path))
    assert said == [False, "perennial up", "perennial", []]
    assert "needs a checkout" in refused
    assert (lock, triton) == ((ROOT / "requirements-triton.lock").read_text(), str(installed.parent / "triton"))


@pytest.mark.slow
def test_a_case_outside_is_trained_from_the_wheel(installed, tmp_path):
    """With the wheel and a case's folder, the case of the README goes from its source to a first champion.

    Its manifests name the version, and no commit of the repository that the folder happens to lie in.
    """
    subprocess.run(["git", "init", "-q"], cwd=installed.parent, check=True)
    readme.written(tmp_path / "mine" / readme.CASE)
    text = (tmp_path / "mine" / readme.CASE / "schema.py").read_text()
    (tmp_path / "mine" / readme.CASE / "schema.py").write_text(text.replace("pipelines.fields", "perennial"))
    readme.delivered().write_parquet(tmp_path / "parcels.parquet")
    places = {"PERENNIAL_CASES": "mine", "PERENNIAL_DATA_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    for step in ("ingest", "validate", "dataset", "train", "export", "evaluate", "gate"):
        command = [installed / "perennial", step, "--case", readme.CASE, "--as-of", "2024-06-01"]
        said = json.loads(called(command, tmp_path, **places))
    assert said["facts"]["decision"] == "promote"
    manifest = json.loads((tmp_path / said["manifest"]).read_text())
    assert (manifest["provenance"]["version"], manifest["provenance"]["commit"]) == ("0.2.0", None)
