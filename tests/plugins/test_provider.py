"""perennial/airflow as a package: what a user's dags folder holds, and what old names lead to."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from airflow._shared.module_loading import import_string
from airflow._shared.providers_discovery.providers_discovery import (
    _create_customized_form_field_behaviours_schema_validator,
    _create_provider_info_schema_validator,
)
from airflow._shared.secrets_masker import secrets_masker

from perennial import airflow
from perennial.airflow import plugin
from perennial.airflow.cases import dags, require_readable_cases
from perennial.airflow.hooks import HOOKS
from perennial.airflow.links import Link
from perennial.airflow.provider import get_provider_info
from perennial.airflow.run import readable_cases
from pipelines.errors import ConfigError
from tests import shop

ROOT = Path(__file__).parents[2]
NAMES = {
    *("LedgerHook", "MlflowHook", "StepOperator", "TorchrunOperator", "TriggerOnce", "TritonHook"),
    *("dags", "require_readable_cases"),
}
"""What DAGs of other repositories import: no name goes."""
THREE_LINES = """\"\"\"Every dag that Airflow runs for {case}.\"\"\"
from perennial.airflow import dags
globals().update(dags({case!r}))
"""
BAG = """
import json, sys
from airflow.dag_processing.dagbag import DagBag

bag = DagBag(dag_folder=sys.argv[1], bundle_name="dags-folder")
print(json.dumps({"errors": bag.import_errors, "dags": sorted(bag.dags)}))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of cases outside: one that works, one whose parameters have a typo."""
    folder = tmp_path / "mine"
    shop.write(folder, "works")
    path = shop.write(folder, "typo") / "params.yaml"
    path.write_text(path.read_text().replace("drift:", "drfit:"))
    monkeypatch.setenv("PERENNIAL_CASES", str(folder))
    return folder


def test_the_package_is_light_until_a_name_is_asked_for():
    """Airflow imports it to list providers: that brings neither Airflow's SDK nor numpy, and all public names exist."""
    code = "import sys, perennial.airflow; print([m for m in ('airflow', 'numpy', 'sqlalchemy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert set(airflow.__all__) == NAMES
    assert all(getattr(airflow, name).__name__ == name for name in NAMES)
    with pytest.raises(AttributeError, match="has no attribute 'dag': choose one of"):
        airflow.dag  # noqa: B018


@pytest.mark.usefixtures("mine")
def test_a_case_that_is_named_has_its_dags_or_says_why_not():
    """Four DAGs for a case that works; one error for a case that is broken or unknown, which names it."""
    assert sorted(dags("works")) == ["works_drift", "works_rollback", "works_rollout", "works_training"]
    assert list(dags("works", kinds=("rollback",))) == ["works_rollback"]
    with pytest.raises(ConfigError, match=r"case typo has no DAGs: .*drfit"):
        dags("works", "typo")
    with pytest.raises(ConfigError, match=r"there is no case wroks: choose of .*works"):
        dags("wroks")


@pytest.mark.usefixtures("mine")
def test_without_a_name_a_broken_case_stops_itself_only(caplog):
    """All cases that work have their DAGs, the log names the others, and another file can make them an import error."""
    assert {"works_training", "bank_training"} <= set(made := dags())
    assert not [name for name in made if name.startswith("typo")]
    assert "case typo has no DAGs" in caplog.text
    with pytest.raises(ConfigError, match="case typo has no DAGs"):
        require_readable_cases()


@pytest.mark.usefixtures("mine")
def test_a_task_looks_at_its_own_case_only(monkeypatch):
    """A file that names two cases is read for a task of one of them: the other one's mistakes do not matter."""
    monkeypatch.setenv("_AIRFLOW_PARSING_CONTEXT_DAG_ID", "works_training")
    assert "works_training" in dags("works", "typo")
    assert [params.case for params in readable_cases(["bank", "works"])[0]] == ["works"]


@pytest.mark.slow
def test_a_dags_folder_needs_three_lines(mine, tmp_path):
    """A file of three lines gives Airflow the DAGs of a case; of a broken one, an import error of that file alone."""
    folder = tmp_path / "dags"
    folder.mkdir()
    for case in ("works", "typo"):
        (folder / f"{case}.py").write_text(THREE_LINES.format(case=case))
    done = subprocess.run(
        [sys.executable, "-c", BAG, str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "AIRFLOW_HOME": str(tmp_path / "airflow")},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dags"] == ["works_drift", "works_rollback", "works_rollout", "works_training"]
    [(file, said)] = found["errors"].items()
    assert file.endswith("typo.py")
    assert "drfit" in said


def test_old_names_lead_to_the_same():
    """What DAGs of people, and Airflow's database, name by the modules that once lay in plugins/ is the package's."""
    for module, names in (
        ("deadlines", ("deadline", "late")),
        ("hosts", ("PerennialHosts",)),
        ("operators", ("StepOperator", "TriggerOnce")),
        ("torchrun", ("TorchrunOperator",)),
    ):
        spec = importlib.util.spec_from_file_location(module, ROOT / "plugins" / f"perennial_{module}.py")
        old = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(old)
        for name in names:
            assert (
                getattr(old, name).__module__ == f"perennial.airflow.{'trigger' if name == 'TriggerOnce' else module}"
            )


def test_the_provider_s_description_is_airflow_s_and_names_what_exists():
    """It keeps Airflow's schema; every hook has the type and title that its form says, every link can be made."""
    info = get_provider_info()
    _create_provider_info_schema_validator().validate(info)
    for kind in info["connection-types"]:
        hook = import_string(kind["hook-class-name"])
        assert (hook.conn_type, hook.hook_name) == (kind["connection-type"], kind["hook-name"])
        assert HOOKS[hook.default_conn_name] is hook
        _create_customized_form_field_behaviours_schema_validator().validate(
            {name.replace("-", "_"): value for name, value in kind["ui-field-behaviour"].items()}
        )
    assert len(info["connection-types"]) == len(HOOKS)
    assert [import_string(path) for path in info["extra-links"]] == [Link]
    assert secrets_masker.should_hide_value_for_key("private_key")


def test_entry_points_lead_to_what_exists():
    """What pyproject.toml declares for Airflow can be loaded."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    for group in ("apache_airflow_provider", "airflow.plugins"):
        for name, value in declared[group].items():
            assert EntryPoint(name, value, group).load()


@pytest.mark.parametrize(("asked", "guards"), [("False", 0), ("True", 1)])
def test_an_installed_package_guards_no_api_server_that_did_not_ask(asked, guards, monkeypatch):
    """Whoever installs the provider keeps his api-server as it is; one setting puts the guard of hosts before it."""
    monkeypatch.setenv("AIRFLOW__PERENNIAL__GUARD_HOSTS", asked)
    assert len(importlib.reload(plugin).Perennial.fastapi_root_middlewares) == guards
