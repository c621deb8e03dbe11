"""A state folder with a store behind it: what one machine commits another one has, once, whoever dies and when."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from threading import Barrier

import polars as pl
import pytest

from pipelines import objects, storage
from pipelines.cases.loans import source as loans
from pipelines.data import lake, log
from pipelines.drift.profile import spec
from pipelines.errors import ConfigError, NotKept, Unavailable
from pipelines.settings import Settings
from tests import stores
from tests.pipelines.data import loglines

AS_OF = datetime(2024, 5, 1, tzinfo=UTC)
RUN = Path("artefacts/bank/20240501T000000Z")


@pytest.fixture(scope="module")
def server():
    """An S3 server."""
    with stores.s3() as found:
        yield found


@pytest.fixture
def url(server, request):
    """The address of an empty prefix."""
    yield f"s3://{stores.BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"
    objects._attached.clear()


def home(folder: Path, url: str) -> Settings:
    """A machine's state folder that has the store."""
    settings = Settings(home=folder, lake=url)
    objects.attach(settings)
    return settings


def commit(settings: Settings, key: str = "k1", text: str = "hello", step: str = "train", together=None):
    """A step's folder with one file; ``together`` is where builders wait for each other."""

    def build(work: Path) -> dict[str, str]:
        if together is not None:
            together.wait(60)
        (work / "sub").mkdir()
        (work / "sub" / "data.txt").write_text(text)
        return {"said": text}

    folder = settings.root / RUN / step
    return storage.commit(folder, case="bank", as_of=AS_OF, key=key, inputs={}, build=build)


def names(server, url: str) -> list[str]:
    """The objects of a prefix."""
    prefix = url.removeprefix(f"s3://{stores.BUCKET}/")
    found = server.client.list_objects_v2(Bucket=stores.BUCKET, Prefix=prefix).get("Contents", [])
    return [one["Key"].removeprefix(f"{prefix}/") for one in found]


def test_what_one_machine_commits_another_one_reads_and_makes_no_second_time(tmp_path, url, server):
    """A machine with an empty disk finds the folder of a commit, byte for byte, and the same key is a no-op there."""
    one, other = home(tmp_path / "one", url), home(tmp_path / "other", url)
    made = commit(one)

    found = storage.read_manifest(other.root / RUN / "train")

    assert found == made
    assert (other.root / RUN / "train" / "sub" / "data.txt").read_text() == "hello"
    assert commit(other, text="never built") == made
    assert [name for name in names(server, url) if name.endswith(".json")] == [f"{RUN}/train/000001.json"]


def test_a_later_content_takes_the_place_on_every_machine_and_the_earlier_one_is_still_found(tmp_path, url):
    """Another key sets the content aside on the machine that commits it, and on one that had the earlier one."""
    one, other = home(tmp_path / "one", url), home(tmp_path / "other", url)
    commit(one)
    objects.refresh(other.root / RUN / "train")
    commit(one, key="k2", text="again")

    assert objects.refresh(other.root / RUN / "train") == 2

    assert storage.read_manifest(other.root / RUN / "train").key == "k2"
    for settings in (other, home(tmp_path / "third", url)):
        folder = storage.find(settings.root / RUN / "train", "k1")
        assert (folder / "sub" / "data.txt").read_text() == "hello"
    with pytest.raises(NotKept):
        storage.find(other.root / RUN / "train", "k3")


def test_of_eight_machines_that_commit_at_once_one_wins(tmp_path, url, server):
    """40 rounds of eight machines that race for one manifest: one winner each, and all have what it made."""
    machines = [home(tmp_path / str(number), url) for number in range(8)]
    together = Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        for turn in range(40):
            step = f"step{turn}"
            every = [(machine, f"k{number}", str(number), step, together) for number, machine in enumerate(machines)]
            made = list(pool.map(lambda arguments: commit(*arguments), every))
            assert len({manifest.key for manifest in made}) == 1
            assert {(one.root / RUN / step / "sub" / "data.txt").read_text() for one in machines} == {
                made[0].facts["said"]
            }
    pointers = [name for name in names(server, url) if name.endswith("000001.json")]
    assert len(pointers) == 40
    assert not [name for name in names(server, url) if name.endswith("000002.json")]


@pytest.mark.parametrize("point", [*storage.FAILPOINTS, *storage.STORE_FAILPOINTS])
def test_killed_anywhere_another_machine_goes_on(tmp_path, url, server, point):
    """After SIGKILL at any point of a commit another machine's try leaves one content, whole, and so does the first."""
    code = (
        "import sys; from pathlib import Path; from tests.pipelines.test_objects import commit, home;"
        "commit(home(Path(sys.argv[1]), sys.argv[2]))"
    )
    environment = {**os.environ, "PERENNIAL_FAILPOINT": f"train:{point}", "PYTHONPATH": str(Path.cwd())}
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / "one"), url], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL

    made = [commit(home(tmp_path / machine, url)) for machine in ("other", "one")]

    assert made[0] == made[1]
    assert [name for name in names(server, url) if name.endswith(".json")] == [f"{RUN}/train/000001.json"]
    for machine in ("other", "one"):
        below = tmp_path / machine / RUN
        assert sorted(path.name for path in below.iterdir()) == ["train"]
        assert storage.read_manifest(below / "train") == made[0]


def test_a_store_that_is_away_stops_a_commit_before_anything_is_seen(tmp_path, url, server):
    """Without its store nothing is committed here either; the error names the store, and the next try goes on."""
    settings = home(tmp_path, url)
    server.refuse_logins()
    try:
        with pytest.raises(Unavailable, match=r"the store s3://box/.* did not take or give .*may write there"):
            commit(settings)
    finally:
        server.take_logins()
    assert not (settings.root / RUN / "train").exists()

    assert commit(settings).facts == {"said": "hello"}


def test_days_of_rows_are_read_where_they_were_not_written(tmp_path, url):
    """A machine reads the partitions that another one wrote, checked; repeated ids are found in them."""
    one, other = home(tmp_path / "one", url), home(tmp_path / "other", url)
    rows = pl.DataFrame({"id": ["a", "b", "a"], "event_time": [AS_OF, AS_OF, AS_OF.replace(day=2)]})
    partitions = lake.write_days(one, "bank", rows)

    assert lake.read_days(other, partitions).equals(rows)
    third = home(tmp_path / "third", url)
    assert lake.repeated_ids(third, partitions).to_list() == ["a"]
    assert lake.write_days(third, "bank", rows) == partitions


def test_the_compacted_log_is_read_where_it_was_not_written(tmp_path, url):
    """What one machine compacts another one reads, rows and labels, and a copy that is thrown away comes again."""
    one, other = home(tmp_path / "one", url), home(tmp_path / "other", url)
    day = date(2020, 5, 1)
    sent = loans.generate(day, rows_per_day=48).with_columns(label_time=pl.col("event_time") + timedelta(days=7))
    loglines.write(one, "loans", "predictions", "a", loglines.predictions(sent, loans.FIELDS))
    loglines.write(one, "loans", "labels", "b", loglines.labels(sent, loans.FIELDS))
    assert log.compact(one, "loans") == 2
    window, end = log.window_of(day), datetime(2020, 6, 1, tzinfo=UTC)
    rows, labels = log.read_predictions(one, "loans", window), log.read_labels(one, "loans", end)

    for settings in (other, one):
        for kind in ("predictions", "labels"):
            objects.need_folder(settings.lake_dir / "loans" / kind / "segments")
        assert log.first_day(settings, "loans") == day
        assert log.read_predictions(settings, "loans", window).equals(rows)
        assert log.read_labels(settings, "loans", end).equals(labels)
        shutil.rmtree(one.lake_dir)
    for kind in ("predictions", "labels"):
        objects.need_folder(one.lake_dir / "loans" / kind / "segments")
    assert log.compact(one, "loans") == 0


def test_scales_are_frozen_once_for_all_machines(tmp_path, url, monkeypatch):
    """Of two machines that freeze a case's scales the first one's hold for both."""
    from pipelines.cases import load_fields
    from pipelines.cases.loans.source import generate

    one, other = home(tmp_path / "one", url), home(tmp_path / "other", url)
    monkeypatch.setattr(Settings, "profile_file", lambda self, case: self.lake_dir / case / "profile.json")
    fields = load_fields("loans")
    days = [generate(AS_OF.replace(day=day).date(), rows_per_day=300, seed=day) for day in (1, 2)]

    first = spec.freeze_spec(fields, one, lambda: days[0])
    second = spec.freeze_spec(fields, other, lambda: days[1])

    assert first == second
    assert (other.lake_dir / "loans" / "profile.json").read_bytes() == (
        one.lake_dir / "loans" / "profile.json"
    ).read_bytes()


def test_a_state_of_before_is_pushed_by_one_command(tmp_path, url, server):
    """A state that had no store is put into one whole, set-aside contents too; a second push puts nothing."""
    plain = Settings(home=tmp_path / "old")
    commit(plain)
    commit(plain, key="k2", text="again")
    partitions = lake.write_days(plain, "bank", pl.DataFrame({"id": ["a"], "event_time": [AS_OF]}))

    settings = Settings(home=tmp_path / "old", lake=url)
    assert objects.push(settings) == {"files": 1, "folders": 2}
    assert objects.push(settings)["folders"] == 0

    other = home(tmp_path / "other", url)
    assert lake.read_days(other, partitions).height == 1
    assert storage.read_manifest(other.root / RUN / "train").key == "k2"
    assert storage.find(other.root / RUN / "train", "k1").exists()


def test_a_push_that_broke_off_is_completed_by_the_next(tmp_path, url, monkeypatch):
    """What was set aside never stands for the present content, and a damaged folder is not pushed at all."""
    plain = Settings(home=tmp_path / "old")
    folder = plain.root / RUN / "train"
    commit(plain)
    commit(plain, key="k2", text="again")
    shutil.copytree(folder, folder.with_name(f"train.{storage.DAMAGED}k2.x"))
    settings = Settings(home=tmp_path / "old", lake=url)
    publish, published = objects.publish, []

    def breaks_off(*arguments):
        published.append(arguments)
        if len(published) == 2:
            raise Unavailable("the store is gone")
        return publish(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(objects, "publish", breaks_off)
        with pytest.raises(Unavailable, match="is gone"):
            objects.push(settings)

    assert objects.push(settings)["folders"] == 1

    assert [found.about["key"] for found in objects.commits(folder)] == ["k1", "k2"]
    other = home(tmp_path / "other", url)
    assert storage.read_manifest(other.root / RUN / "train").key == "k2"


@pytest.mark.parametrize("address", ["s3:/nothing", "ftp://somewhere/x", "nonsense"])
def test_an_address_that_is_none_says_so(tmp_path, address):
    """A store's address that nothing can be made of is refused at once, with what one looks like."""
    with pytest.raises(ConfigError, match=r"PERENNIAL_LAKE=.* is no address of a store .*s3://bucket/prefix"):
        objects.attach(Settings(home=tmp_path, lake=address))


def test_only_lake_and_artefacts_of_a_state_are_in_its_store(tmp_path, url, server):
    """The ledger, secrets and a scratch state below the folder are nobody else's."""
    settings = home(tmp_path, url)
    for name in ("ledger.db", "api_key", "try/bank/lake/x.parquet", "prediction_log/x.jsonl"):
        objects.put(settings.root / name, b"secret")
    assert names(server, url) == []


LINE = ("ingest", "validate", "dataset", "train", "export", "evaluate", "gate")


@pytest.mark.slow
@pytest.mark.long
def test_the_line_goes_from_machine_to_machine(tmp_path, url):
    """Each step of the line on another machine with an empty disk gives the keys and verdict of one machine alone."""
    ledgers = {name: f"sqlite:///{tmp_path / name}.db" for name in ("shared", "alone")}

    def step(name: str, folder: str, ledger: str, store: str) -> dict:
        environment = {
            **os.environ,
            "PERENNIAL_HOME": str(tmp_path / folder),
            "PERENNIAL_LEDGER_URL": ledgers[ledger],
            "PERENNIAL_LAKE": store,
            "POLARS_MAX_THREADS": "1",
        }
        command = [sys.executable, "-m", "pipelines", name, "--case", "loans", "--as-of", "2020-05-01"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    alone = {name: step(name, "alone", "alone", "") for name in LINE}
    shared = {name: step(name, f"machine-{number}", "shared", url) for number, name in enumerate(LINE)}

    assert {name: one["key"] for name, one in shared.items()} == {name: one["key"] for name, one in alone.items()}
    assert shared["gate"]["facts"]["decision"] == alone["gate"]["facts"]["decision"]
