"""A case out of service and back: the ledger's rows about it, what follows them, and who refuses meanwhile."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from rich.console import Console
from sqlalchemy import create_engine, text

from embedded import __main__ as stack
from pipelines import audit, ledger
from pipelines.cases import load_fields
from pipelines.cli import main, retiring
from pipelines.contracts import Order
from pipelines.deploy import repository, rollout, scheduler, triton
from pipelines.errors import ConfigError, ConflictError, IntegrityError, Unavailable
from pipelines.ledger import database
from pipelines.params_file import load_params
from pipelines.registry import aliases
from pipelines.reports import metrics
from pipelines.settings import Settings
from pipelines.steps import release, rollback
from tests import shop

WHY = "nobody buys any more"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A fresh ledger on each database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("schema")


def champion(url, case, version=1):
    """Let a version serve, as far as the ledger knows."""
    order = {"case": case, "after": 0, "champion": version, "candidate_key": "k", "bundle": "b", "action": "promote"}
    more = {"trigger": "manual", "reason": "a test", "actor": "a test", "as_of": datetime(2024, 1, 1, tzinfo=UTC)}
    ledger.append(url, Order(**order, **more))


def edit(url, statement):
    """Change the database behind the ledger's back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def test_the_newest_word_counts_and_the_same_word_changes_nothing(url):
    """Retired once however often it is said, taken back, retired again: the history keeps who and why."""
    say = {"reason": WHY, "actor": "ada"}
    assert ledger.retirement(url, "shop") is None
    assert [ledger.set_retired(url, "shop", retired=True, **say) for _ in range(3)] == [True, False, False]
    assert (ledger.retirement(url, "shop").actor, ledger.retirement(url, "shop").reason) == ("ada", WHY)
    assert ledger.retirement(url, "desk") is None
    with pytest.raises(ConflictError, match=r"shop is retired since .* \(ada: nobody buys any more\).*--undo"):
        ledger.require_in_service(url, "shop")
    assert ledger.set_retired(url, "shop", retired=False, reason="they do", actor="bob")
    assert not ledger.set_retired(url, "shop", retired=False, reason="again", actor="bob")
    ledger.require_in_service(url, "shop")
    assert ledger.set_retired(url, "shop", retired=True, **say)
    assert [(row.seq, row.retired, row.actor) for row in ledger.retirements(url, "shop")] == [
        (1, True, "ada"),
        (2, False, "bob"),
        (3, True, "ada"),
    ]


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM retirements",
        "UPDATE retirements SET retired = 0",
        "UPDATE retirements SET reason = 'another'",
        """INSERT INTO retirements VALUES ('shop', 2, 0, '', '', '2026-01-01T00:00:00+00:00')""",
    ],
)
def test_a_row_that_the_ledger_did_not_write_is_found(url, damage):
    """A changed, removed or added row is found by who goes by it, for its case alone, and by the audit."""
    for case in ("shop", "desk"):
        ledger.set_retired(url, case, retired=True, reason=WHY, actor="ada")
    edit(url, damage if damage.startswith("INSERT") else f"{damage} WHERE \"case\" = 'shop'")
    with pytest.raises(IntegrityError, match="ledger of shop"):
        ledger.retirement(url, "shop")
    found = ledger.retired(url, ["shop", "desk"])
    assert (found.now.keys(), found.damaged.keys()) == ({"desk"}, {"shop"})
    assert {one["case"] for one in audit.audit(Settings(home="nowhere", ledger_url=url))["findings"]} == {"shop"}


def test_a_ledger_of_before_is_read_as_it_is(url):
    """One without the table gets it, and its releases stay what they were."""
    champion(url, "shop")
    before = ledger.releases(url, "shop")
    edit(url, "DROP TABLE retirements")
    database._engine.cache_clear()
    assert ledger.retired(url, ["shop"]) == ({}, {})
    assert ledger.releases(url, "shop") == before


def test_a_case_that_is_gone_is_not_retired(url):
    """Gone is what has a champion, no folder and nobody's word; a damaged case is left to the audit."""
    for case in ("shop", "desk", "lamp", "sofa"):
        champion(url, case)
    ledger.set_retired(url, "desk", retired=True, reason=WHY, actor="ada")
    ledger.record_verdict(
        url, case="none", gate_key="g", as_of=datetime(2024, 1, 1, tzinfo=UTC), trigger="drift", verdict={}
    )
    edit(url, "DELETE FROM releases WHERE \"case\" = 'sofa'")
    assert {case: release.champion for case, release in ledger.gone(url, ["lamp"]).items()} == {"shop": 1}


# --- what a person types -----------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path, monkeypatch):
    """``(settings, asked)``: the cases shop (live, with a champion) and desk, and what their services were asked."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PERENNIAL_ACTOR", "ada")
    asked = []
    with shop.installed(tmp_path / "cases") as root:
        for name in ("shop", "desk"):
            shop.write(root, name)
        shop.edit(root / "shop" / "params.yaml", ("live: false", "live: true"))
        settings = Settings(home=tmp_path / "home", actor="ada")
        champion(settings.ledger, "shop")
        (settings.model_repository / "shop" / "1").mkdir(parents=True)
        repository.configure(settings.model_repository, load_fields("shop"), [1])
        dags = [{"dag_id": f"{case}_{kind}"} for case in ("shop", "desk") for kind in scheduler.KINDS]
        client = SimpleNamespace(
            dags=lambda: dags, pause=lambda dag, *, paused: asked.append(("pause" if paused else "unpause", dag))
        )
        monkeypatch.setattr(scheduler, "client", lambda _settings: client)
        monkeypatch.setattr(triton, "unload", lambda _settings, case: asked.append(("unload", case)))
        monkeypatch.setattr(aliases, "project", lambda _settings, case: asked.append(("aliases", case)) or [])
        yield settings, asked


def typed(capsys, *arguments):
    """What the command line answers: exit code, JSON, what it says."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else None, err


def test_a_retired_case_is_unloaded_and_its_dags_are_paused(world, capsys):
    """The ledger's row, Triton, the aliases and the DAGs, in this order; asked again, only what follows is made so."""
    settings, asked = world
    code, answer, _ = typed(capsys, "retire", "shop", "--reason", WHY)
    assert (code, answer["changed"], answer["behind"]) == (0, True, [])
    assert (answer["retired"]["actor"], answer["retired"]["reason"]) == ("ada", WHY)
    assert asked == [("unload", "shop"), ("aliases", "shop"), *(("pause", f"shop_{kind}") for kind in scheduler.KINDS)]
    assert repository.models(settings.model_repository) == set()
    code, answer, _ = typed(capsys, "retire", "shop", "--reason", "another")
    assert (code, answer["changed"], answer["retired"]["reason"]) == (0, False, WHY)
    assert len(ledger.retirements(settings.ledger, "shop")) == 1
    again = 2 + len(scheduler.KINDS)
    assert asked[again:] == asked[1:again]


def test_services_that_are_away_do_not_keep_a_case_in_service(world, capsys, monkeypatch):
    """With Triton, MLflow and Airflow away the case is retired all the same, and what is behind is told."""
    settings, _ = world

    def away(*_arguments, **_more):
        raise Unavailable("nobody answers")

    monkeypatch.setattr(triton, "unload", away)
    monkeypatch.setattr(aliases, "project", away)
    monkeypatch.setattr(scheduler, "client", away)
    code, answer, _ = typed(capsys, "retire", "shop", "--reason", WHY)
    assert code == 0
    assert [line.partition(":")[0] for line in answer["behind"]] == ["Triton", "MLflow", "Airflow"]
    assert ledger.retirement(settings.ledger, "shop") is not None
    monkeypatch.setattr(rollout, "restore", away)
    with pytest.raises(Unavailable):  # the champion must answer before its case is taken back
        retiring.take_back(settings, "shop", "they do")
    assert ledger.retirement(settings.ledger, "shop") is not None


def test_a_case_is_taken_back_with_its_champion(world, capsys, monkeypatch):
    """Its champion is loaded before the ledger says so; DAGs of a live case go on, those of history stay paused."""
    settings, asked = world
    loaded = []

    def restore(_settings, fields, _device, *, retired):
        loaded.append((fields.case, retired, ledger.retirement(settings.ledger, fields.case) is not None))
        return ["loaded version 1"]

    monkeypatch.setattr(rollout, "restore", restore)
    for case in ("shop", "desk"):
        retiring.retire(settings, case, WHY)
    asked.clear()
    code, answer, _ = typed(capsys, "retire", "shop", "--undo", "--reason", "they do")
    assert (code, answer["retired"], answer["changed"]) == (0, None, True)
    assert loaded == [("shop", False, True)]
    assert asked == [("aliases", "shop"), *(("unpause", f"shop_{kind}") for kind in scheduler.KINDS)]
    assert retiring.take_back(settings, "shop", "again")["changed"] is False
    asked.clear()
    retiring.take_back(settings, "desk", "they do")
    assert asked == [("aliases", "desk")]


def test_a_case_whose_folder_is_gone_can_be_retired_and_not_taken_back(world, tmp_path):
    """Somebody's word is enough to retire it; to serve again it needs its folder. Unknown names are refused."""
    settings, _ = world
    (tmp_path / "cases" / "shop").rename(tmp_path / "aside")
    assert retiring.retire(settings, "shop", WHY)["changed"]
    with pytest.raises(ConfigError, match="unknown case 'shop'"):
        retiring.take_back(settings, "shop", "they do")
    with pytest.raises(ConfigError, match="unknown case 'sofa': choose one of desk, shop"):
        retiring.retire(settings, "sofa", WHY)
    with pytest.raises(ConfigError, match="needs a reason"):
        retiring.retire(settings, "desk", " ")


def test_nothing_lets_a_retired_case_serve_another_version(world, capsys):
    """Rollback, release and a training by hand are refused with what to do, and change nothing."""
    settings, _ = world
    retiring.retire(settings, "shop", WHY)
    params = load_params("shop")
    for order in (
        lambda: rollback.run(params, settings, reason="x", actor="ada"),
        lambda: release.run(params, settings, reason="x", actor="ada", version=2),
    ):
        with pytest.raises(ConflictError, match=r"shop is retired since .* take it back first"):
            order()
    code, _, said = typed(capsys, "retrain", "--case", "shop", "--as-of", "2024-02-01", "--reason", "x")
    assert code == 1
    assert "shop is retired since" in said
    assert len(ledger.releases(settings.ledger, "shop")) == 1


def test_status_and_metrics_tell_of_retired_and_gone_cases(world, capsys, monkeypatch, tmp_path):
    """`status` has a line for each; a retired case has one series, and a gone one the series that alerts."""
    settings, _ = world
    champion(settings.ledger, "lamp")
    retiring.retire(settings, "shop", WHY)
    stack._print_cases(settings.root, Console(width=300, soft_wrap=True))
    out = capsys.readouterr().out
    assert "retired  shop is retired since" in out
    assert "gone case  lamp: version 1 is its champion, and it has no folder" in out
    told = metrics.render(settings, [load_params("shop"), load_params("desk")])
    lines = [line for line in told.splitlines() if not line.startswith("#")]
    assert 'perennial_case_gone{case="lamp"} 1.0' in lines
    assert [line for line in lines if 'case="shop"' in line] == [
        'perennial_case_broken{case="shop"} 0.0',
        'perennial_case_retired{case="shop"} 1.0',
        'perennial_case_gone{case="shop"} 0.0',
    ]
    assert 'perennial_case_retired{case="desk"} 0.0' in lines
    assert 'perennial_case_live{case="desk"} 0.0' in lines
