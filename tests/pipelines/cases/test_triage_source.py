"""pipelines/cases/triage: the file is found and checked; a download is polite, resumable, parsed to the same rows."""

import json
import os
import urllib.error
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.case_files import CASES_ROOT
from pipelines.cases import sources
from pipelines.cases.triage import nvd, teams
from pipelines.cases.triage import source as triage
from pipelines.cases.triage.schema import FIELDS
from pipelines.cases.triage_fields import source as by_fields
from pipelines.cases.triage_fields.schema import ASSIGNERS
from pipelines.cases.triage_fields.schema import FIELDS as BY_FIELDS
from pipelines.contracts import Window
from pipelines.data import contract
from pipelines.errors import DataError, IntegrityError
from pipelines.fields import frame_schema
from pipelines.params_file import load_params
from pipelines.settings import Settings

PARAMS = load_params("triage")
LEAKS = {"cvss2_score", "cvss3_score", "vendor_product", "n_refs"}
ALL = Window(start=datetime(2000, 1, 1, tzinfo=UTC), end=datetime(2030, 1, 1, tzinfo=UTC))
SPRING = Window(start=datetime(2014, 1, 1, tzinfo=UTC), end=datetime(2014, 6, 1, tzinfo=UTC))


def report(number: int, published: str = "2014-02-03T10:00:00.123", **changes: Any) -> dict[str, Any]:
    """A report in the form of the API."""
    return {
        "id": f"CVE-2014-{number:04d}",
        "sourceIdentifier": "cve@mitre.org",
        "published": published,
        "lastModified": "2018-10-09T19:54:48.900",
        "vulnStatus": "Modified",
        "descriptions": [
            {"lang": "es", "value": "Desbordamiento"},
            {"lang": "en", "value": f"Buffer  overflow\nnumber {number}. "},
        ],
        "metrics": {"cvssMetricV2": [{"baseSeverity": "HIGH"}]},
        "weaknesses": [
            {"source": "cna@example.com", "type": "Secondary", "description": [{"lang": "en", "value": "CWE-79"}]},
            {
                "source": "nvd@nist.gov",
                "type": "Primary",
                "description": [{"lang": "en", "value": "CWE-119"}, {"lang": "en", "value": "CWE-20"}],
            },
        ],
        "references": [{"url": "https://example.com"}],
    } | changes


def api(
    reports: list[dict[str, Any]], asked: list[dict[str, str]], page: int = 2
) -> Callable[[dict[str, str]], dict[str, Any]]:
    """A stand-in for the API: pages of ``page`` reports that were published in the stretch asked for."""

    def ask(parameters: dict[str, str]) -> dict[str, Any]:
        asked.append(parameters)
        found = [one for one in reports if parameters["pubStartDate"] <= one["published"] <= parameters["pubEndDate"]]
        start = int(parameters["startIndex"])
        return {
            "totalResults": len(found),
            "startIndex": start,
            "vulnerabilities": [{"cve": one} for one in found[start : start + page]],
        }

    return ask


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    """No test reaches the network, and none waits for it; the waits are kept for the test that asks."""
    waits: list[float] = []

    def refuse(*_arguments, **_keywords):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(nvd.urllib.request, "urlopen", refuse)
    monkeypatch.setattr(nvd.time, "sleep", waits.append)
    return waits


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> sources.Source:
    """The real file, where it lies on this machine."""
    folders = [Path(os.environ.get("PERENNIAL_DATA_DIR", "/nonexistent")), sources.BESIDE]
    if not any((folder / triage.PARQUET).exists() for folder in folders):
        pytest.skip("the triage data is neither in PERENNIAL_DATA_DIR nor in ../shared/data")
    return triage.resolve(Settings(home=tmp_path_factory.mktemp("home")), PARAMS)


def test_the_text_is_the_only_input():
    """What the analysis assigns (severity, weakness, product, references) is no feature, and every team is a class."""
    assert FIELDS.names == ("text",)
    assert FIELDS.classes == tuple(sorted(teams.CODES))


def test_the_table_of_teams_is_the_datas(real: sources.Source):
    """Each weakness code of the real file stands in the table, under the team that the file gives it; no other does."""
    pairs = pl.read_parquet(real.path, columns=["cwe", "team"]).unique()
    assert sorted(pairs.iter_rows()) == sorted((code, team) for team, codes in teams.CODES.items() for code in codes)


def test_a_report_is_parsed():
    """The English text in one line, the first of NVD's own weaknesses for the team, and publication in UTC."""
    row = nvd.parse(iter([report(1)])).row(0, named=True)
    assert row == {
        "id": "CVE-2014-0001",
        "event_time": datetime(2014, 2, 3, 10, 0, 0, 123000, tzinfo=UTC),
        "text": "Buffer overflow number 1.",
        "team": "memory_safety",
        "cwe": "CWE-119",
        "cwe_all": "CWE-119,CWE-20,CWE-79",
        "assigner": "cve@mitre.org",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"vulnStatus": "Rejected"},
        {"descriptions": [{"lang": "en", "value": "** REJECT ** DO NOT USE"}]},
        {"descriptions": [{"lang": "es", "value": "Desbordamiento"}]},
        {"weaknesses": []},
    ],
)
def test_reports_that_nobody_can_route_are_left_out(changes: dict[str, Any]):
    """Rejected reports and those without a text or a weakness are no rows."""
    assert nvd.parse(iter([report(1, **changes), report(2)]))["id"].to_list() == ["CVE-2014-0002"]


def test_stretches_meet_and_are_short_enough():
    """The period is covered without a gap by pieces of at most 120 days."""
    pieces = nvd.stretches(Window(start=PARAMS.period[0], end=PARAMS.period[1]))
    assert (pieces[0].start, pieces[-1].end) == PARAMS.period
    assert all(one.end == other.start for one, other in pairwise(pieces))
    assert max(piece.end - piece.start for piece in pieces) == timedelta(days=120)


def test_a_download_reads_every_page_and_goes_on_where_it_stopped(tmp_path: Path):
    """Pages are asked for until all reports are there; after an interruption only what is missing is asked for."""
    reports = [report(number, f"2014-0{number}-03T10:00:00.000") for number in (5, 4, 3, 2, 1)]
    asked: list[dict[str, str]] = []
    working = api(reports, asked)

    def broken(parameters: dict[str, str]) -> dict[str, Any]:
        if parameters["pubStartDate"] > "2014-04":
            raise DataError("the line is dead")
        return working(parameters)

    with pytest.raises(DataError, match="the line is dead"):
        nvd.download(SPRING, tmp_path, broken)
    assert [parameters["startIndex"] for parameters in asked] == ["0", "2"]
    frame = nvd.download(SPRING, tmp_path, working)
    assert frame["id"].to_list() == [f"CVE-2014-000{number}" for number in (1, 2, 3, 4, 5)]
    assert [parameters["pubStartDate"] for parameters in asked[2:]] == ["2014-05-01T00:00:00.000"]
    assert asked[0]["pubEndDate"] == "2014-04-30T23:59:59.999"


@pytest.mark.parametrize(
    "answer",
    [
        {"vulnerabilities": []},
        {"totalResults": 7, "vulnerabilities": []},
        {"totalResults": "many", "vulnerabilities": []},
    ],
)
def test_an_answer_in_another_form_is_refused(answer: dict[str, Any], tmp_path: Path):
    """An answer without its count, or that ends too early, is an error and leaves no file behind."""
    with pytest.raises(IntegrityError):
        nvd.download(SPRING, tmp_path, lambda _parameters: answer)
    assert list(tmp_path.iterdir()) == []


def test_the_api_is_asked_politely(no_network: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At most five requests in 30 seconds; a refusal is waited for three times at most, and no such host not at all."""
    answers: list[Any] = [
        urllib.error.HTTPError("u", 403, "slow down", None, None),
        json.dumps({"totalResults": 0, "vulnerabilities": []}).encode(),
    ] * 2

    class Answer:
        def __init__(self, data: bytes):
            self.data = data

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            return None

        def read(self, _most: int) -> bytes:
            return self.data

    def answer(_request, **_keywords):
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return Answer(given)

    monkeypatch.setattr(nvd.urllib.request, "urlopen", answer)
    assert nvd.download(SPRING, tmp_path / "a").is_empty()
    assert len(no_network) == 4
    assert min(no_network) > 30 / 5
    answers[:] = [urllib.error.HTTPError("u", 503, "away", None, None)] * 3
    with pytest.raises(DataError, match=r"503.*finished stretches are kept"):
        nvd.download(SPRING, tmp_path / "b")


def test_without_data_the_error_says_what_to_do(
    no_network: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With no file anywhere and no network, the error comes at once, and names the file and the setting that helps."""
    monkeypatch.setattr(sources, "BESIDE", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no nvd_cve\.parquet in any folder.*no network here.*set PERENNIAL_DATA_DIR"):
        triage.resolve(Settings(home=tmp_path, data_dir=None), PARAMS)
    assert no_network == []


def test_another_file_under_the_name_is_refused(tmp_path: Path):
    """A file with other bytes is not used, and not passed over in silence either."""
    (tmp_path / triage.PARQUET).write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="replace or remove it"):
        triage.resolve(Settings(home=tmp_path, data_dir=tmp_path), PARAMS)


def test_a_download_is_kept_and_gives_canonical_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second resolve takes what the first one downloaded, says so, and names it apart from the pinned file."""
    monkeypatch.setattr(sources, "BESIDE", tmp_path / "nowhere")
    monkeypatch.setattr(nvd, "_ask", api([report(1), report(2, "2014-02-04T10:00:00.000")], []))
    settings = Settings(home=tmp_path, data_dir=None)
    first = triage.resolve(settings, PARAMS)
    assert "downloaded from" in first.why
    second = triage.resolve(settings, PARAMS)
    assert "kept from an earlier download" in second.why
    assert (second.name, second.sha256) == ("nvd_api", first.sha256)
    rows = triage.rows(second, ALL, PARAMS)
    assert dict(rows.schema) == frame_schema(FIELDS)
    assert rows["team"].to_list() == [FIELDS.classes.index("memory_safety")] * 2


def test_the_real_rows_are_canonical(real: sources.Source):
    """Labels are positions and arrive 30 days later; every text is there once; the notices that must travel do."""
    rows = triage.rows(real, ALL, PARAMS)
    assert dict(rows.schema) == frame_schema(FIELDS)
    assert rows.height == rows["text"].n_unique() == 32_374
    assert sorted(rows["team"].unique()) == list(range(11))
    assert (rows["label_time"] - rows["event_time"]).dt.total_days().unique().to_list() == [30]
    assert rows["event_time"].is_sorted()
    assert real.kind == "real"
    for words in ("The MITRE Corporation", "CVE Usage: MITRE hereby grants", "not endorsed or certified by the NVD"):
        assert words in real.notice


def test_of_equal_texts_the_first_stays_whatever_the_window(tmp_path: Path):
    """A window that holds only the later copy of a text has no row of it: it was reported before."""
    frame = nvd.parse(
        iter(
            [
                report(1),
                report(2, "2014-05-03T10:00:00.000", descriptions=report(1)["descriptions"]),
                report(3, "2014-05-04T10:00:00.000"),
            ]
        )
    )
    frame.write_parquet(tmp_path / "reports.parquet")
    source = sources.Source("x", "real", "made here", "", tmp_path / "reports.parquet")
    assert triage.rows(source, ALL, PARAMS)["id"].to_list() == ["CVE-2014-0001", "CVE-2014-0003"]
    may = Window(start=datetime(2014, 5, 1, tzinfo=UTC), end=datetime(2014, 6, 1, tzinfo=UTC))
    assert triage.rows(source, may, PARAMS)["id"].to_list() == ["CVE-2014-0003"]


def test_a_strange_team_is_named(tmp_path: Path):
    """A file with a team that is no class is refused by the team's name."""
    nvd.parse(iter([report(1)])).with_columns(team=pl.lit("kitchen")).write_parquet(tmp_path / "reports.parquet")
    with pytest.raises(DataError, match="names the team 'kitchen'"):
        triage.rows(sources.Source("x", "real", "made here", "", tmp_path / "reports.parquet"), ALL, PARAMS)


@pytest.mark.parametrize(
    ("variant", "changed"),
    [
        ("90-days", {"dataset": {"window_days": 90, "min_rows": 500, "fallback_rows": 1500}}),
        ("embedding", {"model": {"kind": "embedding"}, "drift": {"window": "month"}}),
    ],
)
def test_a_variant_changes_what_its_name_says(
    variant: str, changed: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    """Each variant is taken through PERENNIAL_PARAMS_DIR and differs from the case's own parameters in this alone."""
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(CASES_ROOT / "triage" / "variants" / variant))
    found = load_params("triage")
    for block, values in changed.items():
        for name, value in values.items():
            assert getattr(getattr(found, block), name) == value
    expected = {block: getattr(PARAMS, block).model_copy(update=values) for block, values in changed.items()}
    assert found == PARAMS.model_copy(update=expected)


def test_fields_beside_the_text_are_known_when_a_report_is_published(tmp_path: Path):
    """The assigner's organisation, the time, and the years that the number waited; what is no address is null."""
    reports = [report(1), report(2, "2016-05-03T10:00:00.000", sourceIdentifier="8254265b-2729-46b6-b9e3")]
    nvd.parse(iter([*reports, report(3, sourceIdentifier="cna@new.example")])).write_parquet(
        tmp_path / "reports.parquet"
    )
    source = sources.Source("x", "real", "made here", "", tmp_path / "reports.parquet")
    rows = by_fields.rows(source, ALL, load_params("triage_fields"))
    assert dict(rows.schema) == frame_schema(BY_FIELDS)
    assert rows.select("id", "assigner", "waited").sort("id").rows() == [
        ("CVE-2014-0001", "mitre.org", 0.0),
        ("CVE-2014-0002", None, 2.0),
        ("CVE-2014-0003", "new.example", 0.0),
    ]
    assert rows["published"].equals(rows["event_time"].rename("published"))
    assert not {"cwe", "cwe_all", *LEAKS} & set(rows.columns)


def test_a_stretch_of_before_a_column_was_added_is_asked_for_again(tmp_path: Path):
    """A finished stretch without the assigner is downloaded once more, and then kept."""
    asked: list[dict[str, str]] = []
    ask = api([report(1)], asked)
    nvd.download(SPRING, tmp_path, ask)
    for path in tmp_path.glob("*.parquet"):
        pl.read_parquet(path).drop("assigner").write_parquet(path)
    once = len(asked)
    assert nvd.download(SPRING, tmp_path, ask)["assigner"].to_list() == ["cve@mitre.org"]
    assert len(asked) == 2 * once
    nvd.download(SPRING, tmp_path, ask)
    assert len(asked) == 2 * once


def test_the_real_rows_have_their_fields(real: sources.Source):
    """The same reports as of triage, with assigners of which some are new after 2013, and no number of a later year."""
    rows = by_fields.rows(real, ALL, load_params("triage_fields"))
    assert rows["id"].equals(triage.rows(real, ALL, PARAMS)["id"])
    good, bad = contract.split(rows, BY_FIELDS)
    assert (good.height, bad.height) == (32_374, 0)
    of_2013 = rows.filter(pl.col("event_time").dt.year() == 2013)["assigner"]
    assert sorted(of_2013.unique()) == list(ASSIGNERS)
    assert rows["assigner"].null_count() == 0
    assert 0.03 < (~rows["assigner"].is_in(ASSIGNERS)).mean() < 0.1
    assert rows["waited"].min() == 0


def test_the_variant_of_fields_learns_its_tokens(monkeypatch: pytest.MonkeyPatch):
    """It differs from the case's own parameters in model and optimisation only."""
    own = load_params("triage_fields")
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(CASES_ROOT / "triage_fields" / "variants" / "tokens"))
    found = load_params("triage_fields")
    assert (own.model.tokens, found.model.tokens) == (0, 64)
    assert found == own.model_copy(update={"model": found.model, "train": found.train})
