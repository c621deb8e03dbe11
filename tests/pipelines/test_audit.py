"""`python -m pipelines audit`: every edit of the ledger is found, but those that leave a consistent database."""

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO

import pytest
from sqlalchemy import create_engine, text

from benchmarks.proof import ledger_edits
from pipelines import ledger, storage
from pipelines.audit import audit
from pipelines.cli import main
from pipelines.contracts import Order
from pipelines.settings import Settings

CASE = ledger_edits.CASE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A state folder with a small ledger that has rows in all tables, and the runs that they are from.

    Copied before it is changed.
    """
    settings = ledger_edits.make(tmp_path_factory.mktemp("ledger"))
    engine = create_engine(settings.ledger)
    with engine.begin() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    engine.dispose()
    return settings


@pytest.fixture
def settings(made, tmp_path):
    """A copy of it."""
    shutil.copytree(made.root, tmp_path / "state")
    return Settings(home=tmp_path / "state")


def found(settings):
    """The tables of which an audit found something, with what it said."""
    return {one["table"]: one["problem"] for one in audit(settings)["findings"]}


def test_every_edit_is_found_but_those_that_leave_a_consistent_chain(tmp_path):
    """Of 50 seeded edits, two of each kind, the audit finds all but two kinds.

    These are the recomputed chain and the newest row removed with its entry.
    """
    rows = ledger_edits.table(ledger_edits.edits(50, seed=3, home=tmp_path))
    assert {row["kind"] for row in rows if row["found"] < row["edits"]} <= set(ledger_edits.CONSISTENT)
    assert sum(row["edits"] for row in rows) == 50


def test_the_command_answers_with_its_exit_code(settings, monkeypatch):
    """A clean ledger is exit code 0 and no finding.

    One with a deleted episode exit code 1, a table of what is wrong, and JSON in a pipe.
    """
    monkeypatch.setenv("PERENNIAL_HOME", str(settings.root))
    assert main(["audit"]) == 0
    _edit(settings, "DELETE FROM drift_episodes")
    answer = StringIO()
    with redirect_stdout(answer):
        code = main(["audit", "--case", CASE])
    told = json.loads(answer.getvalue())
    assert (code, told["ok"]) == (1, False)
    assert {one["table"] for one in told["findings"]} == {"drift_episodes", "drift_states"}


def test_what_lies_outside_of_the_database_gives_a_consistent_edit_away(settings):
    """A ledger that is replaced by one of which a promotion was cut off, entry and all, is consistent.

    The runs' manifests still tell.
    """
    head = ledger.head(settings.ledger, CASE)
    promoted = ledger.releases(settings.ledger, CASE)[2]
    assert (promoted.seq, head.seq) == (5, 6)
    for table in (
        "releases",
        "drift_states",
        "drift_chain",
        "drift_episodes",
        "alert_runs",
        "alert_deliveries",
        "alert_silences",
        "retirements",
        "starts",
    ):
        _edit(settings, f"DELETE FROM {table}" + (" WHERE seq > 4" if table == "releases" else ""))
    _edit(settings, "DELETE FROM journal WHERE number > (SELECT max(number) FROM journal WHERE about = 'verdicts')")
    told = found(settings)
    assert set(told) == {"artefacts"}
    assert "released version 5 as release 5; the ledger has no such row" in told["artefacts"]


def test_the_files_that_releases_go_by_are_checked(settings):
    """What a released version is must be what was judged.

    A changed model of it, a verdict file that says otherwise and a gate that judged another artefact are found.
    """
    assert found(settings) == {}
    release = ledger.releases(settings.ledger, CASE)[0]
    model = settings.root / release.bundle / "model"
    kept = model.read_text()
    model.write_text(kept.replace("1", "2"))
    assert "model has sha256" in found(settings)["artefacts"]
    model.write_text(kept)
    gate = (settings.root / release.bundle).parent / "gate" / storage.MANIFEST
    said = json.loads(gate.read_text())
    for change, problem in (
        ({"facts": {**said["facts"], "verdict_sha256": "0" * 64}}, "another verdict"),
        ({"inputs": {"evaluate": "0" * 64}}, "does not hold the artefact"),
        ({"key": "0" * 64}, "no gate run beside it judged this artefact"),
    ):
        gate.write_text(json.dumps(said | change | {"sha256": ""}))
        assert any(problem in one["problem"] for one in audit(settings)["findings"]), problem


def test_a_promotion_without_a_verdict_that_says_so_is_found(settings):
    """A release that cites the verdict of a rejected candidate, or none, is found.

    It is found although the ledger wrote its row itself.
    """
    rejected = next(row for row in ledger.verdicts(settings.ledger, CASE) if row["verdict"]["decision"] == "reject")
    head = ledger.head(settings.ledger, CASE)
    about = {
        name: getattr(head, name) for name in ("case", "candidate_key", "bundle", "trigger", "reason", "actor", "as_of")
    }
    for number, (value, problem) in enumerate(
        ((rejected["hash"], "whose verdict is reject"), (None, "rests on the verdict none"))
    ):
        ledger.append(
            settings.ledger, Order(**about, after=head.seq + number, champion=2, action="promote", verdict_hash=value)
        )
        assert any(problem in one["problem"] for one in audit(settings)["findings"]), problem


def test_it_works_on_postgresql(made, schema):
    """The same rows in PostgreSQL are clean, and an edit there is found."""
    ledger.check(schema)
    source = create_engine(made.ledger)
    target = create_engine(schema)
    with source.connect() as read, target.begin() as write:
        for table in ledger_edits.metadata.sorted_tables:
            write.execute(table.insert(), [dict(row) for row in read.execute(table.select()).mappings()])
    settings = made.model_copy(update={"ledger_url": schema})
    assert audit(settings)["ok"]
    _edit(settings, "DELETE FROM verdicts WHERE gate_key = (SELECT min(gate_key) FROM verdicts)")
    assert "the row is gone: the journal has an entry for it" in {one["problem"] for one in audit(settings)["findings"]}
    source.dispose()
    target.dispose()


def _edit(settings, statement: str) -> None:
    engine = create_engine(settings.ledger)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()
