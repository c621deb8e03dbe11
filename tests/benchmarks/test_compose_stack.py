"""What `make test-compose` brings along and counts, without an engine."""

import copy
import re
import urllib.request

import pytest

from benchmarks.compose import checks as compose_checks
from benchmarks.compose import engine as compose_engine
from benchmarks.compose import outside as compose_outside
from benchmarks.compose import stack as compose_stack
from pipelines.cases import load_case, part
from pipelines.cases.surveying import survey
from pipelines.errors import Unavailable
from pipelines.params import EstimatorParams
from pipelines.settings import Settings
from tests.compose.stackfile import ROOT, own_images, services

ROUND = {
    "at_birth": {"releases": [1], "verdicts": ["promote"], "alerts": []},
    "served": {"rows": 400, "versions": [1], "logged": 400},
    "drift_run": {"state": "success"},
    "doors": [{"who": "nobody", "wanted": 401, "status": 401}],
    "reach": {"wrong": []},
    "held": {"wrong": []},
    "prometheus": {"rules_not_ok": []},
    "served_after_kill": {"rows": 400, "versions": [1], "logged": 800},
    "outside": {"versions": [1]},
    "outside_again": [1],
    "state_kept": True,
    "celery_run": {"state": "success", "hosts": ["a"], "worker": "a"},
    "nameless_images": 0,
    "left": [],
}
FACTS = {"rounds": {"as usual": ROUND}, "demo": {"same": {"files": {"differ": []}}}, "left": []}


def test_every_image_has_a_stand_in():
    """Each image that is not built here, of the compose file and of the Dockerfiles, has a stand-in.

    No stand-in is of another image or version.
    """
    own = {service["image"] for service in own_images().values()}
    used = {service["image"] for service in services().values()} - own
    bases = {
        base
        for path in (ROOT / "compose" / "images").glob("*.Dockerfile")
        for base in re.findall(r"^FROM (\S+)", path.read_text(), re.MULTILINE)
    }
    assert set(compose_engine.IMAGES) == used | bases
    assert {path.name for path in compose_engine.STANDINS.iterdir() if path.is_dir()} == set(
        compose_engine.IMAGES.values()
    )


def test_everything_that_holds_is_said_to_hold():
    """A run in which all went well misses no goal."""
    assert all(one["holds"] for one in compose_stack.judge(FACTS))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("at_birth", "releases"), []),
        (("at_birth", "alerts"), ["CRITICAL loans"]),
        (("drift_run", "state"), "failed"),
        (("celery_run", "state"), "failed"),
        (("celery_run", "hosts"), ["a", "b"]),
        (("doors", 0, "status"), 200),
        (("reach", "wrong"), ["gateway reaches the world"]),
        (("held", "wrong"), ["triton: runs as root"]),
        (("prometheus", "rules_not_ok"), ["StackTargetDown"]),
        (("served_after_kill", "logged"), 799),
        (("served_after_kill", "versions"), [2]),
        (("outside", "versions"), []),
        (("outside_again",), [2]),
        (("state_kept",), False),
        (("nameless_images",), 1),
        (("left",), ["volume"]),
    ],
)
def test_what_went_wrong_misses_one_goal(place, value):
    """Each thing that a round finds is one goal's, and a wrong one misses just that."""
    facts = copy.deepcopy(FACTS)
    at = facts["rounds"]["as usual"]
    for name in place[:-1]:
        at = at[name]
    at[place[-1]] = value
    assert sum(not one["holds"] for one in compose_stack.judge(facts)) == 1


def test_the_case_from_outside_is_one_that_works(tmp_path, monkeypatch):
    """What a round puts beside the images is a whole case, whose file is read by its name in the data's folder."""
    path, folder = compose_outside.written(tmp_path / "home")
    monkeypatch.setenv("PERENNIAL_CASES", str(folder.parent))
    moved = path.rename(tmp_path / path.name)
    assert [case.problem for case in survey(names=[compose_outside.CASE])] == [""]
    case = load_case(compose_outside.CASE)
    source = part(case.name, "source").resolve(Settings(home=tmp_path / "state", data_dir=tmp_path), case.params)
    assert [file.path for file in source.files] == [moved]
    assert isinstance(case.params.model, EstimatorParams)
    assert case.params.model.family == "lightgbm"


def test_builds_reach_the_folders_that_pip_looks_into(tmp_path, monkeypatch):
    """A folder of wheels is served by HTTP as long as images are built, and so is an index of files beside it.

    Other places stay as they are.
    """
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "a.whl").write_text("a")
    (tmp_path / "index" / "simple" / "b").mkdir(parents=True)
    (tmp_path / "index" / "files").mkdir()
    (tmp_path / "index" / "files" / "b.whl").write_text("b")
    told = {
        "find-links": str(tmp_path / "wheels"),
        "extra-index-url": f"{(tmp_path / 'index' / 'simple').as_uri()} https://example.org/simple",
    }
    monkeypatch.setattr(compose_engine, "BRIDGE", "127.0.0.1")
    monkeypatch.setattr(compose_engine, "_configured", lambda: told)
    with compose_engine.pip_settings() as text:
        lines = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
        index, other = lines["extra-index-url"].split()
        assert urllib.request.urlopen(f"{lines['find-links']}a.whl").read() == b"a"
        assert urllib.request.urlopen(f"{index}/b/../../files/b.whl").read() == b"b"
        assert (other, lines["trusted-host"]) == ("https://example.org/simple", "127.0.0.1")


@pytest.mark.parametrize(("text", "gib"), [("512MiB", 0.5), ("1.5GiB", 1.5), ("0B", 0.0)])
def test_memory_is_read_in_its_unit(text, gib):
    """What the engine says of a container's memory counts in GiB."""
    assert compose_checks._gib(text) == gib


@pytest.mark.parametrize(
    ("said", "users", "kept"),
    [
        ("network a has active endpoints", "", ["a"]),
        ("network a has active endpoints", "postgres", None),
        ("no space left on device", "", None),
    ],
)
def test_a_network_that_the_engine_keeps_is_told_apart_from_a_failed_tear_down(monkeypatch, said, users, kept):
    """A network in which no container is left, kept by the engine, is named; any other failure is raised."""
    answers = {"network": "a\n", "ps": users}
    monkeypatch.setattr(compose_stack, "said", lambda *words, env: answers[words[1]])
    stack = compose_checks.Stack(ROOT, {}, {})
    asked = []

    def order():
        asked.append(1)
        raise Unavailable(said)

    if kept is None:
        with pytest.raises(Unavailable, match=said):
            compose_stack.taken_down(stack, order)
    else:
        assert compose_stack.taken_down(stack, order) == kept
        assert len(asked) == 2
    assert compose_stack.taken_down(stack, lambda: None) == []
