"""pipelines/replay on the loans stream: the real steps, three policies, a kill in between."""

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl
import pytest

from pipelines import ledger, storage
from pipelines.cases.loans import source
from pipelines.reports.frontier import cells, columns, page
from pipelines.reports.frontier_chart import png
from pipelines.settings import Settings
from tests.pipelines.replay.small import SINCE, UNTIL, played, write_params

pytestmark = pytest.mark.slow
HISTORY = ("tick", "candidate", "drift", "training")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The state folder of the undisturbed replay."""
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture(scope="module")
def undisturbed(home):
    """The summary of a replay of never, drift and oracle that nothing disturbed."""
    return played(home)


def history(summary, policy):
    """What a policy did, tick by tick."""
    return [{name: tick.get(name) for name in HISTORY} for tick in summary["by_seed"]["0"][policy]["ticks"]]


def cached(home, folder):
    """A fresh state in ``folder`` that knows the candidates of ``home`` and nothing else."""
    shutil.copytree(home / "replay" / "loans" / "candidates", folder / "replay" / "loans" / "candidates", symlinks=True)
    return folder


def trained(home):
    """When each candidate of a state was trained."""
    return {
        path.parent.parent.name: storage.read_manifest(path.parent).provenance
        for path in home.glob("replay/loans/candidates/*/train/manifest.json")
    }


def test_drift_retrains_and_serves_better_than_never(undisturbed):
    """After the new rule the drift policy asks for one training run, its candidate is promoted.

    The loss falls below the frozen model's.
    """
    never, drift = (undisturbed["policies"][name] for name in ("never", "drift"))
    assert (never["retrains"], drift["retrains"], drift["promotions"]) == (0, 1, 1)
    assert drift["means"]["log_loss"] < never["means"]["log_loss"] - 0.1
    assert drift["on_frontier"]
    asked = next(tick for tick in history(undisturbed, "drift") if tick["training"])
    assert asked["training"]["trigger"] == "drift"
    assert asked["drift"]["action"] == "retrain"


def test_before_they_part_all_policies_serve_the_same(undisturbed):
    """The first champion is one and the same, and so are the losses until somebody else serves."""
    never, drift = (undisturbed["policies"][name]["log_loss_by_tick"] for name in ("never", "drift"))
    same = [
        one["candidate"] == other["candidate"]
        for one, other in zip(history(undisturbed, "never"), history(undisturbed, "drift"), strict=True)
    ]
    assert same[0]
    assert not same[-1]
    assert all((one == other) == equal for one, other, equal in zip(never, drift, same, strict=True))


@pytest.mark.long
def test_headroom_asks_a_probe_at_the_price_in_its_name_and_drift_asks_none(undisturbed, home, tmp_path):
    """At a price that no gain is worth, the probe's figures stand in every judged window and drift alone decides."""
    found = played(cached(home, tmp_path), "headroom@9")
    assert history(found, "headroom@9") == history(undisturbed, "drift")
    told = [
        json.loads(path.read_text())
        for path in tmp_path.glob("replay/loans/headroom@9-*/artefacts/loans/*/headroom/headroom.json")
    ]
    measured = [one for one in told if one["code"] == "measured"]
    assert {one["price"] for one in measured} == {9.0}
    assert max(one["own_past"]["value"] for one in measured) > 0.1
    assert not list(home.glob("replay/loans/drift-*/artefacts/loans/*/headroom"))


def test_nobody_beats_the_oracle(undisturbed):
    """Its loss and price together are at most every other policy's, and regrets are measured from it."""
    found = undisturbed["policies"]
    assert all(one["total"] >= found["oracle"]["total"] - 1e-12 for one in found.values())
    assert found["oracle"]["regret"] == 0
    assert found["never"]["regret"] == pytest.approx(found["never"]["total"] - found["oracle"]["total"])
    assert found["never"]["regret"] > 0.05


def test_equal_datasets_are_trained_once(undisturbed, home):
    """Two policies and the oracle needed three trainings of two different datasets.

    Two were run, and one bundle of each exported.
    """
    keys = {tick["candidate"] for policy in ("never", "drift", "oracle") for tick in history(undisturbed, policy)}
    assert trained(home).keys() == keys
    assert len(keys) == 2
    assert len(list(home.glob("replay/loans/candidates/*/runs/*/export/manifest.json"))) == 2


def test_what_is_served_is_logged_and_promoted_in_the_ledger(undisturbed, home):
    """The drift policy's own ledger has both releases, the second one from the tick on whose end it was asked for."""
    [folder] = home.glob("replay/loans/drift-*")
    releases = ledger.releases(Settings(home=folder).ledger, "loans")
    assert [(release.champion, release.trigger) for release in releases] == [(1, "initial"), (2, "drift")]
    first = next(number for number, tick in enumerate(history(undisturbed, "drift")) if tick["training"])
    lines = [
        json.loads(line)
        for path in sorted(folder.glob("prediction_log/loans/predictions/*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    versions = [line["version"] for line in lines]
    assert versions == [1] * 100 * (first + 1) + [2] * 100 * (len(undisturbed["ticks"]) - first - 1)


def test_no_label_is_logged_before_it_arrives(undisturbed, home):
    """Every label in a tick's segment arrived by the tick's end.

    Every row that a run learned from had its label by then.
    """
    del undisturbed
    segments = list(home.glob("replay/loans/*/prediction_log/loans/labels/*.jsonl"))
    assert segments
    for path in segments:
        end = datetime.fromisoformat(f"{path.stem}T23:59:59.999999+00:00")
        assert all(
            datetime.fromisoformat(json.loads(line)["event_time"]) <= end for line in path.read_text().splitlines()
        )
    for path in home.glob("replay/loans/*-*/artefacts/loans/*/dataset/train.parquet"):
        as_of = storage.read_manifest(path.parent).as_of
        assert pl.read_parquet(path)["label_time"].max() <= as_of


def test_labels_that_have_not_arrived_change_nothing(undisturbed, home, tmp_path, monkeypatch):
    """With all labels that arrive after a day turned round, every decision up to that day is what it was."""
    decided = next(number for number, tick in enumerate(history(undisturbed, "drift")) if tick["training"])
    until = SINCE.replace(day=SINCE.day + decided + 2)
    honest = source.rows

    def turned(*arguments):
        late = pl.col("label_time") > datetime(until.year, until.month, until.day, tzinfo=UTC)
        return honest(*arguments).with_columns(
            pl.when(late).then(1 - pl.col("granted")).otherwise(pl.col("granted")).alias("granted")
        )

    monkeypatch.setattr(source, "rows", turned)
    monkeypatch.delattr(source, "pieces")
    found = history(played(cached(home, tmp_path), "drift", until), "drift")
    assert found == history(undisturbed, "drift")[: len(found)]
    assert found[decided]["training"] is not None


@pytest.mark.long
def test_a_killed_replay_goes_on_where_it_was(undisturbed, home, tmp_path):
    """Killed with -9 between a drift run and its record, it is run again and ends in the same result.

    It trains nothing that it had.
    """
    folder = cached(home, tmp_path)
    before = trained(folder)
    environment = os.environ | {
        "PERENNIAL_HOME": str(folder),
        "PERENNIAL_PARAMS_DIR": str(write_params(folder).parent),
        "PERENNIAL_FAILPOINT": "drift:published",
    }
    environment.pop("PERENNIAL_DATA_DIR", None)
    command = [
        sys.executable,
        "-m",
        "pipelines",
        "replay",
        "--case",
        "loans",
        "--policies",
        "never,drift,oracle",
        "--since",
        str(SINCE),
        "--until",
        str(UNTIL),
    ]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(list(folder.glob("replay/loans/never-*/ticks/*.json"))) == len(undisturbed["ticks"]) + 1
    assert not list(folder.glob("replay/loans/drift-*/ticks/2020*.json"))
    assert played(folder) == undisturbed
    assert trained(folder) == before


def test_a_longer_replay_goes_on_from_a_shorter_one(undisturbed, home, tmp_path):
    """Played to an earlier day and then to the end, the policy's history is that of one replay."""
    folder = cached(home, tmp_path)
    shorter = played(folder, "never", SINCE.replace(day=SINCE.day + 3))
    assert [tick["tick"] for tick in shorter["ticks"]] == [tick["tick"] for tick in undisturbed["ticks"]][:3]
    assert history(played(folder, "never"), "never") == history(undisturbed, "never")


def test_the_report_says_what_the_summary_says(undisturbed):
    """The table is sorted by loss and price with a cell per column.

    The page is one file that shows it and asks for nothing else, the picture is a PNG.
    """
    rows = cells(undisturbed)
    totals = [undisturbed["policies"][row[0]]["total"] for row in rows]
    assert totals == sorted(totals)
    assert {len(row) for row in rows} == {len(columns(undisturbed))}
    html = page(undisturbed)
    assert all(f">{cell}<" in html for row in rows for cell in row)
    assert "http" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "https://matplotlib.org", ""
    ).replace("http://creativecommons.org", "")
    assert "e-CUSUM" in html
    assert undisturbed["advice"].replace("'", "&#39;") in html
    assert undisturbed["advice"].startswith("Recommended at ")
    assert png(undisturbed)[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.long
def test_trees_are_played_as_networks_are(tmp_path):
    """An estimator's candidates are trained, scored, gated and promoted by the same steps: drift pays for it, too."""
    trees = {"kind": "estimator", "family": "lightgbm", "parameters": {"n_estimators": 40, "num_leaves": 7}}
    summary = played(tmp_path, "never,drift", model=trees)
    never, drift = (summary["policies"][name] for name in ("never", "drift"))
    assert (drift["retrains"], drift["promotions"]) == (1, 1)
    assert drift["means"]["log_loss"] < never["means"]["log_loss"] - 0.1
