"""examples/: a user's repository passes its own continuous integration where only the wheel is installed."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.package import called, install, install_wheel

pytestmark = [pytest.mark.slow, pytest.mark.long]
EXAMPLE = Path(__file__).parents[2] / "examples" / "acme-models"
PYTEST = """#!{python}
import sys, pytest
sys.exit(pytest.console_main())
"""


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The `bin` of an environment with the wheel, its libraries and pytest: what `pip install` leaves."""
    found = install_wheel(tmp_path_factory.mktemp("installed"))
    (found / "pytest").write_text(PYTEST.format(python=found / "python"))
    (found / "pytest").chmod(0o755)
    return found


def test_a_users_repository_passes_its_own_ci(programs, tmp_path):
    """Its package is installed, and each command of its workflow ends well: the last one is a training that promotes.

    The dags folder holds one file of three lines.
    """
    repository = tmp_path / "acme-models"
    shutil.copytree(EXAMPLE, repository)
    install(programs.parent, repository)
    [job] = yaml.safe_load((repository / ".github" / "workflows" / "ci.yml").read_text())["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands[0] == "pip install . pytest"
    places = job["env"] | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    # What a runner fills in.
    places["AIRFLOW_HOME"] = places["AIRFLOW_HOME"].replace("${{ github.workspace }}", str(repository))
    said = [called(["bash", "-ec", command], repository, **places) for command in commands[1:]]
    assert "3 passed" in said[0]
    assert json.loads(said[-1].splitlines()[-1])["decision"] == "promote"
    [file] = (repository / "dags").glob("*.py")
    assert len(file.read_text().splitlines()) == 3
