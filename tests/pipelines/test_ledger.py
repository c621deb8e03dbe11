"""pipelines/ledger.py: one winner per release, an unbroken chain, a way back."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from pipelines import ledger, storage
from pipelines.contracts import Order
from pipelines.errors import ConflictError, IntegrityError, Overtaken
from pipelines.ledger import journal
from tests.pipelines.alerts.found import alert, notice
from tests.pipelines.conftest import fresh_processes

T0 = datetime(2008, 8, 1, tzinfo=UTC)


def _append(url: str, seq: int, champion: int, action: str = "promote", days: int = 0, case: str = "bank"):
    return ledger.append(
        url,
        Order(
            case=case,
            after=seq,
            champion=champion,
            candidate_key=f"k{champion}",
            bundle=f"artefacts/{champion}",
            action=action,
            trigger="manual",
            reason="test",
            actor="test",
            as_of=T0 + timedelta(days=days),
        ),
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path: Path) -> str:
    """A fresh ledger on each database that it promises to work on.

    A file, and a schema of its own in a real PostgreSQL.
    """
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("schema")


def _edit(url: str, *statements: str, **values) -> None:
    """Change the database behind the ledger's back."""
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement), values)
    engine.dispose()


def test_releases_chain(url: str):
    """Releases come back in order, chained by hash, the newest as head."""
    first, second = _append(url, 0, 1), _append(url, 1, 2, days=1)
    assert ledger.releases(url, "bank") == [first, second]
    assert second.previous_hash == first.hash
    assert ledger.head(url, "bank") == second
    assert ledger.head(url, "loans") is None


def _race(url: str, seq: int, champion: int, queue) -> None:
    try:
        _append(url, seq, champion)
        queue.put(champion)
    except ConflictError:
        queue.put(0)


def test_compare_and_swap_has_one_winner(tmp_path: Path):
    """Of eight processes that promote at once, exactly one wins and the rest get a conflict.

    On PostgreSQL: test_database.py.
    """
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    _append(url, 0, 1)
    context = fresh_processes()
    queue = context.Queue()
    processes = [context.Process(target=_race, args=(url, 1, champion, queue)) for champion in range(2, 10)]
    for process in processes:
        process.start()
    winners = [champion for champion in (queue.get(timeout=60) for _ in processes) if champion]
    for process in processes:
        process.join()
    head = ledger.head(url, "bank")
    assert head is not None
    assert winners == [head.champion]
    assert head.seq == 2


def test_champion_before_excludes_the_runs_own_result(url: str):
    """A run at as_of finds the champion from before as_of, also when it runs again after its promotion."""
    _append(url, 0, 1)
    _append(url, 1, 2, days=30)
    found = ledger.champion_before(url, "bank", T0 + timedelta(days=30))
    assert found is not None
    assert found.champion == 1
    assert ledger.champion_before(url, "bank", T0) is None


def test_rollbacks_walk_back_promotions(url: str):
    """Each rollback returns to the promotion below the one it takes off; the first has none below."""
    for seq, champion in enumerate((1, 2, 3)):
        _append(url, seq, champion, days=seq)
    assert ledger.previous_release(url, "bank").champion == 2
    _append(url, 3, 2, action="rollback", days=3)
    assert ledger.previous_release(url, "bank").champion == 1
    _append(url, 4, 1, action="rollback", days=4)
    assert ledger.previous_release(url, "bank") is None


def test_changed_history_shows(url: str):
    """A row changed behind the ledger's back breaks the chain and is named."""
    _append(url, 0, 1)
    _append(url, 1, 2)
    engine = create_engine(url)
    with engine.begin() as connection:
        change = text("UPDATE releases SET row = replace(row, :old, :new) WHERE seq = 1")
        connection.execute(change, {"old": '"champion":1', "new": '"champion":9'})
    with pytest.raises(IntegrityError, match="row 1 does not continue the chain"):
        ledger.releases(url, "bank")


def test_verdicts_are_immutable(url: str):
    """The same verdict again changes nothing; another verdict for the same gate run is refused."""
    arguments = {"case": "bank", "gate_key": "g", "as_of": T0, "trigger": "drift"}
    first = ledger.record_verdict(url, **arguments, verdict={"decision": "promote"})
    assert ledger.record_verdict(url, **arguments, verdict={"decision": "promote"}) == first
    with pytest.raises(ConflictError, match="immutable"):
        ledger.record_verdict(url, **arguments, verdict={"decision": "reject"})
    assert [row["verdict"]["decision"] for row in ledger.verdicts(url, "bank")] == ["promote"]


def test_first_drift_state_stands(url: str):
    """Two tries of one drift window keep the first state, and later windows build on it."""
    assert ledger.record_drift_state(url, case="bank", as_of=T0, state={"n": 1}, evidence_hash="a") == {"n": 1}
    assert ledger.record_drift_state(url, case="bank", as_of=T0, state={"n": 2}, evidence_hash="b") == {"n": 1}
    assert ledger.drift_state_before(url, "bank", T0) is None
    assert ledger.drift_state_before(url, "bank", T0 + timedelta(days=1)) == {"n": 1}


def test_alerts_are_an_unbroken_row(url: str):
    """Whoever writes a number or a time first wins; an alert stands as its newest row has it."""
    first, later = (alert(count=count, last_seen=T0 + timedelta(hours=count)) for count in (1, 2))
    assert ledger.append_alerts(url, case="loans", seq=1, as_of=T0, alerts=[first], notices=[notice()])
    for seq, as_of in ((1, T0 + timedelta(hours=1)), (2, T0)):
        assert not ledger.append_alerts(url, case="loans", seq=seq, as_of=as_of, alerts=[], notices=[])
    assert ledger.append_alerts(url, case="loans", seq=2, as_of=T0 + timedelta(hours=1), alerts=[later], notices=[])
    assert ledger.alerts(url, "loans") == [later]
    assert [row["seq"] for row in ledger.alert_runs(url, "loans", last=1)] == [2]
    [at] = ledger.alert_runs(url, "loans", at=T0)
    assert [one["id"] for one in at["notices"]] == ["n1"]
    assert ledger.alert_runs(url, "bank") == []


def test_a_delivery_is_claimed_once(url: str):
    """Each event of an attempt is written once, and told by attempt."""
    about = {"case": "loans", "notice": "n1", "sink": "log"}
    assert [ledger.note_delivery(url, **about, attempt=attempt, event="claimed") for attempt in (2, 1, 1)] == [
        True,
        True,
        False,
    ]
    assert ledger.note_delivery(url, **about, attempt=1, event="failed", detail="away")
    assert [(row["attempt"], row["event"]) for row in ledger.deliveries(url, "loans")] == [
        (1, "claimed"),
        (1, "failed"),
        (2, "claimed"),
    ]


def test_the_newest_silence_of_a_rule_counts(url: str):
    """A silence is in force until its time; a newer one replaces it, and ends it if its time has passed."""
    for days in (5, 1):
        ledger.silence(url, case="loans", rule="labels_late", until=T0 + timedelta(days=days), reason="r", actor="ada")
    assert [(row["rule"], row["until"][:10]) for row in ledger.silences(url, "loans", T0)] == [
        ("labels_late", "2008-08-02")
    ]
    assert ledger.silences(url, "loans", T0 + timedelta(days=1)) == []


def test_a_drift_state_has_one_successor(url: str):
    """Of two windows judged on one earlier state only the first to write counts.

    The other has to look again, and another try of the first finds it.
    """
    days = [T0 + timedelta(days=number) for number in range(3)]
    write = partial(ledger.record_drift_state, url, case="bank", evidence_hash="h")
    write(as_of=days[0], state={"n": 0}, previous="")
    write(as_of=days[1], state={"n": 1}, previous="first")
    assert write(as_of=days[1], state={"n": 9}, previous="first") == {"n": 1}
    with pytest.raises(Overtaken, match="decided first"):
        write(as_of=days[2], state={"n": 2}, previous="first")
    assert ledger.drift_state_before(url, "bank", days[2] + timedelta(days=1)) == {"n": 1}
    assert write(as_of=days[2], state={"n": 2}, previous="second") == {"n": 2}
    assert Overtaken.retry


def test_an_episode_opens_once(url: str):
    """Only the first to open an episode is told so."""
    opened = [ledger.open_episode(url, case="bank", episode="e", as_of=T0, evidence={}) for _ in range(3)]
    assert opened == [True, False, False]
    assert [row["episode"] for row in ledger.episodes(url, "bank")] == ["e"]


def test_the_head_is_the_newest_row_that_was_written(url: str):
    """A newest row that was re-hashed, put under another column or removed is no champion.

    The error names case, row and what is wrong.
    """
    _append(url, 0, 1)
    for number, (edit, said) in enumerate(
        (
            (
                "UPDATE releases SET hash = 'f' WHERE seq = 2 AND \"case\" = :case",
                "row 2 does not continue the chain: column hash says f",
            ),
            (
                'DELETE FROM releases WHERE seq = 2 AND "case" = :case',
                "the newest row is release 1, the newest that was written another one",
            ),
            (
                "UPDATE releases SET row = 'nonsense' WHERE seq = 2 AND \"case\" = :case",
                "row 2 of releases: column row cannot be read",
            ),
        )
    ):
        case = f"case{number}"
        for seq in (0, 1):
            _append(url, seq, seq + 1, case=case)
        _edit(url, edit, case=case)
        with pytest.raises(IntegrityError, match=f"ledger of {case}: {said}"):
            ledger.head(url, case)
    _append(url, 1, 2)
    row = ledger.head(url, "bank").model_dump(mode="json") | {"champion": 9}
    row["hash"] = storage.digest({name: value for name, value in row.items() if name != "hash"})
    _edit(
        url,
        "UPDATE releases SET row = :row, hash = :hash WHERE seq = 2 AND \"case\" = 'bank'",
        row=storage.canonical_json(row),
        hash=row["hash"],
    )
    with pytest.raises(
        IntegrityError, match="ledger of bank: the newest row is release 2, the newest that was written another one"
    ):
        ledger.head(url, "bank")
    with pytest.raises(IntegrityError, match="newest row"):
        _append(url, 2, 3)


def test_a_row_that_cannot_be_read_is_named(url: str):
    """What is no JSON in any table is an IntegrityError with case, table, key and column, for every reader."""
    ledger.record_verdict(url, case="bank", gate_key="g", as_of=T0, trigger="drift", verdict={"decision": "promote"})
    ledger.record_drift_state(url, case="bank", as_of=T0, state={"n": 1}, evidence_hash="a")
    ledger.open_episode(url, case="bank", episode="e", as_of=T0, evidence={})
    ledger.append_alerts(url, case="bank", seq=1, as_of=T0, alerts=[], notices=[])
    for table, column in (
        ("verdicts", "verdict"),
        ("drift_states", "state"),
        ("drift_episodes", "evidence"),
        ("alert_runs", "alerts"),
    ):
        _edit(url, f"UPDATE {table} SET {column} = '{{'")
    late = T0 + timedelta(days=1)
    for read, said in (
        (partial(ledger.verdicts, url), "table verdicts, gate_key g: column verdict"),
        (partial(ledger.drift_states, url), "table drift_states, as_of 2008-08-01T00:00:00.000000.00:00: column state"),
        (lambda case: ledger.drift_state_before(url, case, late), "table drift_states, as_of .*: column state"),
        (partial(ledger.episodes, url), "table drift_episodes, episode e: column evidence"),
        (partial(ledger.alert_runs, url), "table alert_runs, seq 1: column alerts"),
    ):
        with pytest.raises(IntegrityError, match=f"ledger of bank: {said} cannot be read"):
            read("bank")


def test_writers_of_one_case_leave_one_unbroken_journal(url: str):
    """Twenty that write at once, into all tables, leave a ledger in which the audit finds nothing.

    Each row has its entry in one chain.
    """

    def write(number: int) -> None:
        as_of = T0 + timedelta(days=number)
        ledger.record_verdict(
            url,
            case="bank",
            gate_key=f"g{number}",
            as_of=as_of,
            trigger="drift",
            verdict={"decision": "reject", "n": number},
        )
        ledger.record_drift_state(
            url,
            case="bank",
            as_of=as_of,
            state={"n": number},
            evidence_hash="a",
            previous=f"p{number % 3}" if number % 2 else None,
        )
        ledger.note_delivery(url, case="bank", notice="n", sink="log", attempt=number % 7, event="claimed")

    with ThreadPoolExecutor(20) as pool:
        for done in [pool.submit(write, number) for number in range(20)]:
            with suppress(Overtaken):
                done.result()
    rows, findings, taken_over = ledger.stored(url, "bank")
    assert (len(rows["verdicts"]), len(rows["alert_deliveries"]), findings, taken_over) == (20, 7, [], 0)


def test_rows_from_before_the_journal_are_taken_over(url: str):
    """A ledger without a journal gets one when it is opened.

    Its rows are told from new ones, and a later edit of them is found.
    """
    _append(url, 0, 1)
    _edit(url, "DROP TABLE journal")
    again = (
        url + ("&" if "?" in url else "?") + ("timeout=29" if url.startswith("sqlite") else "application_name=again")
    )  # a process that comes later
    assert ledger.head(again, "bank").champion == 1
    _append(again, 1, 2)
    assert ledger.stored(again, "bank")[1:] == ([], 1)
    _edit(url, "UPDATE releases SET hash = 'f' WHERE seq = 1")
    [found] = ledger.stored(again, "bank")[1]
    assert (found.table, found.row, found.problem) == (
        "releases",
        '{"seq":1}',
        "the columns are not those that were written",
    )


def _filled(url: str) -> dict[str, Callable[[], object]]:
    """A ledger with two rows in each table that has readers; the readers, by table."""
    late = T0 + timedelta(days=9)
    values = []
    for number in (1, 2):
        as_of = T0 + timedelta(days=number)
        values.append(
            ledger.record_verdict(
                url,
                case="bank",
                gate_key=f"g{number}",
                as_of=as_of,
                trigger="drift",
                verdict={"decision": "promote", "n": number},
            )
        )
        ledger.record_drift_state(
            url, case="bank", as_of=as_of, state={"n": number}, evidence_hash="a", previous=f"p{number}"
        )
        ledger.open_episode(url, case="bank", episode=f"e{number}", as_of=as_of, evidence={"n": number})
        ledger.append_alerts(url, case="bank", seq=number, as_of=as_of, alerts=[], notices=[notice(f"n{number}")])
        ledger.note_delivery(
            url,
            case="bank",
            notice=f'notice "{number}" \u00e4',
            sink="log",
            attempt=1,
            event="claimed",
            detail=f"n{number}",
        )
        ledger.silence(url, case="bank", rule=f"rule{number}", until=late, reason=f"n{number}", actor="ada")
    return {
        "verdicts": lambda: ledger.verdicts(url, "bank"),
        "drift_states": lambda: (ledger.drift_states(url, "bank"), ledger.drift_state_before(url, "bank", late)),
        "drift_episodes": lambda: (ledger.asking_episode(url, "bank", late), ledger.episodes(url, "bank")),
        "alert_runs": lambda: ledger.alert_runs(url, "bank", last=1),
        "alert_deliveries": lambda: ledger.deliveries(url, "bank"),
        "alert_silences": lambda: ledger.silences(url, "bank", T0),
    }


PARTS = {
    "verdicts": ("verdict", "gate_key", "g2"),
    "drift_states": ("state", "as_of", "2008-08-03%"),
    "drift_episodes": ("evidence", "episode", "e2"),
    "alert_runs": ("notices", "as_of", "2008-08-03%"),
    "alert_deliveries": ("detail", "notice", "%2%"),
    "alert_silences": ("reason", "rule", "rule2"),
}
"""Of each table what a reader goes by, and what tells the second of its rows."""


@pytest.mark.parametrize("edit", ["changed", "removed", "moved"])
def test_every_reader_takes_only_what_was_written(url: str, edit: str):
    """A row that was changed behind the ledger's back is never read as another result.

    Nor one that was removed or put under another key: the error names its table.
    """
    for table, read in _filled(url).items():
        whole = read()
        column, key, second = PARTS[table]
        own = ", ".join(f'"{column.name}"' for column in ledger.metadata.tables[table].columns)
        newest = f"{key} LIKE '{second}'"
        moved = {name: "'moved'" if name == key else f'"{name}"' for name in own.replace('"', "").split(", ")}
        if table == "alert_runs":
            moved["seq"] = "3"
        copy = f"SELECT {', '.join(moved.values())} FROM kept WHERE {newest}"
        edits = {
            "changed": [f"UPDATE {table} SET {column} = replace({column}, '2', '3') WHERE {newest}"],
            "removed": [f"DELETE FROM {table} WHERE {newest}"],
            "moved": [f"DELETE FROM {table} WHERE {newest}", f"INSERT INTO {table} ({own}) {copy}"],
        }
        _edit(url, f"CREATE TABLE kept AS SELECT * FROM {table}", *edits[edit])
        with pytest.raises(IntegrityError, match=f"ledger of bank: table {table}, row .* audit"):
            read()
        _edit(url, f"DELETE FROM {table}", f"INSERT INTO {table} ({own}) SELECT {own} FROM kept", "DROP TABLE kept")
        assert read() == whole


def test_a_row_that_is_asked_for_by_name_does_not_need_the_others(url: str):
    """The verdict that a release cites can be read where another one is gone: damage costs only what rests on it."""
    value = ledger.record_verdict(
        url, case="bank", gate_key="g1", as_of=T0, trigger="drift", verdict={"decision": "promote"}
    )
    ledger.record_verdict(url, case="bank", gate_key="g2", as_of=T0, trigger="drift", verdict={"decision": "reject"})
    _edit(url, "DELETE FROM verdicts WHERE gate_key = 'g2'")
    assert ledger.verdict(url, "bank", value)["gate_key"] == "g1"
    with pytest.raises(IntegrityError, match=r"g2.*is gone"):
        ledger.verdicts(url, "bank")


def test_a_row_that_is_written_while_it_is_asked_for_is_no_damage(url: str, monkeypatch: pytest.MonkeyPatch):
    """A row that another run enters between two looks of one that asks for it by name is no damage."""
    looked = journal._whole

    def meanwhile(*given):
        assert ledger.append_alerts(url, case="bank", seq=1, as_of=T0, alerts=[], notices=[])
        monkeypatch.setattr(journal, "_whole", looked)
        return looked(*given)

    ledger.check(url)
    monkeypatch.setattr(journal, "_whole", meanwhile)
    assert ledger.alert_runs(url, "bank", at=T0) == []
    assert [row["seq"] for row in ledger.alert_runs(url, "bank", at=T0)] == [1]


def test_a_row_that_a_damaged_index_hides_is_not_missing(tmp_path: Path):
    """A row that is not found by its name, as one bit of an index has flipped, is an error.

    Nobody does its work a second time.
    """
    file = tmp_path / "ledger.db"
    url, as_of = f"sqlite:///{file}", T0 + timedelta(days=2)
    _filled(url)
    assert [row["seq"] for row in ledger.alert_runs(url, "bank", at=as_of)] == [2]
    assert ledger.alert_runs(url, "bank", at=as_of + timedelta(days=1)) == []
    with create_engine(url).connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        root = connection.execute(
            text("SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_alert_runs_2'")
        ).scalar_one()
        size = connection.execute(text("PRAGMA page_size")).scalar_one()
    data = bytearray(file.read_bytes())
    data[data.index(b"2008-08-03", (root - 1) * size)] ^= 1
    file.write_bytes(data)
    again = url + "?timeout=29"  # a process that comes later
    with pytest.raises(
        IntegrityError,
        match=(
            r'table alert_runs, row {"seq":2} is there and is not found by its as_of: an index of the database is '
            r"damaged"
        ),
    ):
        ledger.alert_runs(again, "bank", at=as_of)
