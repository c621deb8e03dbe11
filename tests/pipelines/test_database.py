"""pipelines/ledger/database.py.

PostgreSQL decides like SQLite, also when twenty ask at once, and what cannot work names the setting.
"""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier

import pytest
from sqlalchemy import create_engine, text

from pipelines import ledger
from pipelines.contracts import Order
from pipelines.errors import ConfigError, ConflictError, DataError, IntegrityError, Unavailable
from pipelines.ledger import database

T0 = datetime(2008, 8, 1, tzinfo=UTC)
AT_ONCE = 20


@pytest.fixture
def url(schema) -> str:
    """An empty schema in a real PostgreSQL."""
    return schema


def at_once(work) -> list:
    """What ``work(number)`` gave in each of twenty threads that were let go together.

    An error is given back as itself.
    """
    gate = Barrier(AT_ONCE)

    def one(number: int):
        gate.wait()
        try:
            return work(number)
        except (ConflictError, Unavailable) as error:
            return error

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, range(AT_ONCE)))


ABOUT = {
    "case": "bank",
    "candidate_key": "k",
    "bundle": "b",
    "action": "promote",
    "trigger": "manual",
    "reason": "r",
    "actor": "a",
    "as_of": T0,
}


def promote(url: str, champion: int):
    """Append the first release."""
    return ledger.append(url, Order(after=0, champion=champion, **ABOUT))


def test_one_of_twenty_promotions_wins(url):
    """Of twenty that append the same release exactly one is told that it did, and the ledger holds that one."""
    answers = at_once(lambda number: promote(url, number + 1))
    won = [answer.champion for answer in answers if not isinstance(answer, Exception)]
    assert sum(isinstance(answer, ConflictError) for answer in answers) == AT_ONCE - 1
    assert won == [ledger.head(url, "bank").champion]


def test_twenty_drift_runs_of_one_window_open_one_episode(url):
    """Twenty drift runs of one window find different things at once.

    All go on with the first state, and one opens the episode.
    """

    def judge(number: int):
        kept = ledger.record_drift_state(
            url, case="bank", as_of=T0, state={"n": number}, evidence_hash="h", previous=""
        )
        return kept["n"], ledger.open_episode(url, case="bank", episode="e", as_of=T0, evidence={})

    answers = at_once(judge)
    assert len({kept for kept, _ in answers}) == 1
    assert [opened for _, opened in answers].count(True) == 1
    assert len(ledger.episodes(url, "bank")) == 1


def test_twenty_windows_on_one_state_leave_one(url):
    """Twenty windows judged on the same earlier state: one is kept, the others are told to look again."""

    def judge(number: int):
        return ledger.record_drift_state(
            url, case="bank", as_of=T0.replace(day=number + 1), state={"n": number}, evidence_hash="h", previous=""
        )

    answers = at_once(judge)
    assert sum(isinstance(answer, dict) for answer in answers) == 1


def test_many_verdicts_of_one_gate_run_are_one(url):
    """The same verdict from twenty tries at once is kept once, and nobody is told of a conflict."""
    about = {"case": "bank", "gate_key": "g", "as_of": T0, "trigger": "drift"}
    hashes = at_once(lambda _number: ledger.record_verdict(url, **about, verdict={"decision": "promote"}))
    assert len(set(hashes)) == 1
    assert len(ledger.verdicts(url, "bank")) == 1


def test_tables_are_made_by_twenty_at_once(url):
    """Processes that all come first to an empty database all find the tables afterwards."""
    engines = at_once(lambda number: database._engine(url, -number, ledger.metadata))
    assert not [engine for engine in engines if isinstance(engine, Exception)]
    for engine in engines:
        engine.dispose()


def test_threads_share_one_engine(tmp_path: Path):
    """Threads that ask for a database's first engine together get the same one, and one alone."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    assert len({id(engine) for engine in at_once(lambda _number: database.engine(url, ledger.metadata))}) == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_old_schema_names_the_setting(request, tmp_path: Path, kind):
    """Tables of another version are refused with the table, the column and the setting; nothing is made or changed."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}" if kind == "sqlite" else request.getfixturevalue("url")
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text('CREATE TABLE releases ("case" VARCHAR(64), seq INTEGER, "row" TEXT)'))
    with pytest.raises(ConfigError, match=r"table releases lacks hash; set PERENNIAL_LEDGER_URL") as refused:
        ledger.head(url, "bank")
    assert "secret" not in str(refused.value)
    with engine.begin() as connection, pytest.raises(Exception, match="episodes"):
        connection.execute(text("SELECT * FROM drift_episodes"))
    engine.dispose()


def test_a_wrong_login_or_database_is_no_reason_to_wait(postgres_server):
    """A refused password and a missing database are mistakes in the setting, shown without the password."""
    wrong = postgres_server.replace("ledger:", "ledger:wrong", 1)
    for url, said in ((wrong, "password authentication failed"), (f"{postgres_server}x", "does not exist")):
        with pytest.raises(ConfigError, match=f"{said}.*PERENNIAL_LEDGER_URL") as refused:
            ledger.head(url, "bank")
        assert ":***@" in str(refused.value)


def test_nobody_there_is_worth_another_try():
    """A port on which nobody listens is Unavailable, which a task retries, and names the setting."""
    with pytest.raises(Unavailable, match="PERENNIAL_LEDGER_URL") as refused:
        ledger.head("postgresql+psycopg://ledger:hush@127.0.0.1:1/ledger", "bank")
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["nonsense", "postgresql+nothing://a/b", "oracledb2://a/b"])
def test_an_address_that_cannot_be_used_names_the_setting(url):
    """What is no database address, or needs a driver that is not there, is a mistake in the setting."""
    with pytest.raises(ConfigError, match="PERENNIAL_LEDGER_URL cannot be used"):
        ledger.head(url, "bank")


def test_a_value_that_does_not_fit_is_said(url):
    """PostgreSQL keeps lengths that SQLite ignores: the caller hears of it as data, not as an outage."""
    with pytest.raises(DataError, match="cannot keep a value"):
        ledger.silence(url, case="bank", rule="r" * 33, until=T0, reason="r", actor="a")


def test_a_damaged_file_is_no_outage(tmp_path: Path):
    """A SQLite file that is no database any more, or whose pages are broken, is an IntegrityError.

    It names the file and what to do.
    """
    path = tmp_path / "ledger.db"
    for number in range(50):
        ledger.silence(f"sqlite:///{path}", case="bank", rule=f"r{number}", until=T0, reason="r" * 200, actor="a")
    database.engine(f"sqlite:///{path}", ledger.metadata).dispose()
    whole = path.read_bytes()
    for number, (start, end, said) in enumerate(((0, 64, "file is not a database"), (4096, len(whole), "malformed"))):
        damaged = tmp_path / f"damaged-{number}.db"
        damaged.write_bytes(whole[:start] + b"\xff" * (end - start) + whole[end:])
        with pytest.raises(IntegrityError, match=f"{damaged.name} is damaged.*{said}.*runbooks.md#ledger-changed"):
            ledger.silences(f"sqlite:///{damaged}", "bank", T0)


def serving(url: str) -> int:
    """The champion of the newest release."""
    return ledger.champion_before(url, "bank", T0 + timedelta(days=9)).champion


def test_a_file_that_was_put_in_its_place_is_read(tmp_path: Path):
    """A restored backup is what a running process reads from then on, and writes to; a file that is gone is told."""
    path, backup = tmp_path / "ledger.db", tmp_path / "backup.db"
    url = f"sqlite:///{path}"
    promote(url, 1)
    with sqlite3.connect(path) as source, sqlite3.connect(backup) as target:
        source.backup(target)
    ledger.append(url, Order(after=1, champion=2, **{**ABOUT, "candidate_key": "l"}))
    assert serving(url) == 2
    for part in tmp_path.glob("ledger.db-*"):
        part.unlink()
    backup.replace(path)
    assert serving(url) == 1
    ledger.append(url, Order(after=1, champion=3, **{**ABOUT, "candidate_key": "m"}))
    with sqlite3.connect(path) as found:
        assert '"champion":3' in found.execute("select row from releases order by seq desc").fetchone()[0]
    path.unlink()
    for _ in range(20):
        with pytest.raises(Unavailable, match=r"ledger.db is gone: .*restore it from a backup"):
            serving(url)
