"""A case outside of the tree with a mistake of each kind stops alone, wherever cases are looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines import case_files, cli
from pipelines.cases.surveying import survey
from tests import mistakes, shop
from tests.serving.gateway.world import client, fake_triton, make_home, release

ROOT = Path(__file__).parents[3]
WHOLE = ("desk_whole", "shop_whole")
KINDS = ("training", "drift", "rollout", "rollback")
GOES_ON = ("source", "model", "newer_module")
"""What the names of cases have in them whose fields can be read: they can be served and watched."""
OURS = "this is a mistake in the program"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The folder of the cases in the tree, where two cases are whole, among all mistakes outside of it."""
    base = tmp_path_factory.mktemp("mistakes")
    with shop.installed(base / "inside") as root, pytest.MonkeyPatch.context() as patch:
        (root / "encoder.py").touch()
        for name in ("desk", "desk_whole"):
            shop.write(root, name)
        mistakes.install(base, patch)
        patch.setenv("PERENNIAL_HOME", str(base / "home"))
        yield root


def goes_on(name):
    """Whether a case's fields and parameters can be read for all that is wrong with it."""
    return name.startswith("shop_") and any(part in name for part in GOES_ON)


@pytest.mark.parametrize("name", mistakes.MISTAKES)
def test_the_command_line_says_it_in_one_line(world, name, capfd):
    """Exit code 2 and one line with the case's own file and what is wrong; nothing is called a mistake of ours."""
    for command in (["history"], ["drift", "--as-of", "2024-02-10"]):
        code = cli.main([command[0], "--case", name, *command[1:]])
        said = capfd.readouterr().err.strip().splitlines()
        if goes_on(name):
            # Without a window that was profiled there is nothing to judge, in a whole case too.
            assert code == (0 if command == ["history"] else 2)
            continue
        assert code == 2
        assert mistakes.MISTAKES[name].words in said[-1] or name == "shop-dash"
        assert said[-1].startswith("ConfigError: ")
        assert len([line for line in said if "Error" in line]) == 1
        assert OURS not in said[-1]


def test_what_is_wrong_with_code_that_drift_does_not_need_is_said_where_it_is(world, capfd):
    """A training of such a case is refused with the line, before anything is read."""
    for name in filter(goes_on, mistakes.MISTAKES):
        step = "train" if "model" in name else "ingest"
        assert cli.main([step, "--case", name, "--as-of", "2024-02-10"]) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("ConfigError: ")
        assert OURS not in said


def test_every_mistake_is_told_and_the_whole_cases_are_whole(world):
    """The survey, which all others go by, names each with its own words, and finds nothing in the others."""
    found = {case.name: case.problem for case in survey()}
    lost = str(world.parent / "lost")
    assert found.keys() == {*mistakes.MISTAKES, *WHOLE, lost}
    assert {name: found[name] for name in WHOLE} == dict.fromkeys(WHOLE, "")
    assert {name for name, mistake in mistakes.MISTAKES.items() if mistake.words not in found[name]} == set()
    assert "which cannot be read" in found[lost]


def test_the_whole_cases_are_watched(world, capfd):
    """Profile and drift of a whole case run beside all of them."""
    for name in WHOLE:
        for step in ("profile", "drift"):
            assert cli.main([step, "--case", name, "--as-of", "2024-02-10"]) == 0, capfd.readouterr().err


def test_airflow_has_one_import_error_and_the_dags_of_the_whole_cases(world):
    """The import error names every mistake with its words; no other file fails, and no broken case has a DAG."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.dags.dag_report", str(world)],
        env={**os.environ, "AIRFLOW_HOME": str(world.parent / "airflow"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert sorted(report["dags"]) == sorted(f"{case}_{kind}" for case in WHOLE for kind in KINDS)
    assert list(report["errors"]) == ["perennial_cases.py"]
    said = report["errors"]["perennial_cases.py"]
    for name, mistake in mistakes.MISTAKES.items():
        assert said.count(f"case {name} has no DAGs: ") == 1
        assert mistake.words in said


def test_a_gateway_starts_with_the_whole_cases(world):
    """It answers for a whole case; /readyz names each mistake, and a case whose fields cannot be read is 503."""
    with fake_triton() as (_, port):
        settings = make_home(world.parent / "gateway", port)
        release(settings, 1, case="shop_whole")
        with client(settings) as http:
            row = {"colour": "red", "price": 10.0, "weight": 2.5}
            assert http.post("/v1/cases/shop_whole/predict", json={"rows": [row]}).status_code == 200
            ready = http.get("/readyz")
            assert ready.status_code == 200
            broken = ready.json()["broken"]
            assert broken.keys() == {*mistakes.MISTAKES, str(world.parent / "lost")}
            for name, mistake in mistakes.MISTAKES.items():
                assert mistake.words in broken[name]
            refused = {name: http.post(f"/v1/cases/{name}/predict", json={"rows": [row]}) for name in broken}
        readable = {"shop_copy", "shop_yaml", "shop_latin", "shop_empty", "shop_newer_params"}
        readable |= {name for name in mistakes.MISTAKES if goes_on(name) or "params" in name}
        for name in mistakes.MISTAKES.keys() - readable:
            assert (refused[name].status_code, "is broken" in refused[name].json()["error"]) == (503, True)
        for name in readable:
            assert "no champion yet" in refused[name].json()["error"]


# --- how a case is looked up -------------------------------------------------------------------------


def test_a_lookup_is_of_now(tmp_path, monkeypatch):
    """A case that comes, goes or gets a second of its name is known by the very next lookup, in any order."""
    outside, others = tmp_path / "mine", tmp_path / "others"
    with shop.installed(tmp_path / "inside") as root:
        monkeypatch.setenv("PERENNIAL_CASES", os.pathsep.join(map(str, (outside, others))))
        for _ in range(3):
            assert case_files.place_of("shop") is None
            folder = shop.write(outside)
            assert case_files.folder_of("shop") == folder
            other = shop.write(others)
            assert "two cases" in case_files.place_of("shop").problem
            assert "shop" in case_files.found()
            other.rename(root / "shop")
            assert "two cases" in case_files.place_of("shop").problem
            folder.rename(tmp_path / "aside")
            assert case_files.folder_of("shop") == root / "shop"
            (root / "shop").rename(tmp_path / "away")
            assert case_files.found() == {}
            for name in ("aside", "away"):
                (tmp_path / name).rename(tmp_path / f"{name}{len(list(tmp_path.iterdir()))}")


def test_a_lookup_looks_at_the_folders_of_one_name(world, monkeypatch):
    """Its cost does not grow with the number of cases: no other case's folder is looked at."""
    looked = []
    stat = Path.stat

    def counted(self, **arguments):
        looked.append(self)
        return stat(self, **arguments)

    monkeypatch.setattr(Path, "stat", counted)
    case_files.folder_of("desk_whole")
    assert 0 < len(looked) <= 8
    assert all("desk_whole" in path.parts for path in looked)


@pytest.mark.parametrize("name", ["", ".", "..", "../mine", "/etc", "_x", "a\0b"])
def test_a_strange_name_is_no_case(world, name):
    """What is no name of a folder in the cases' folders is unknown, and nothing is looked at."""
    assert case_files.place_of(name) is None


def test_a_folder_that_nobody_may_read_stops_alone(world, monkeypatch):
    """A case's folder without permission is that case's problem; the others are found."""
    exists = Path.exists

    def refused(self, **arguments):
        if self.parent.name == "shop_whole":
            raise PermissionError(13, "Permission denied")
        return exists(self, **arguments)

    monkeypatch.setattr(Path, "exists", refused)
    assert "shop_whole cannot be read (Permission denied)" in case_files.found()["shop_whole"].problem
    assert case_files.found()["desk_whole"].problem == ""
