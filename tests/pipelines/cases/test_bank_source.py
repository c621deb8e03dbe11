"""pipelines/cases/bank: the file is found, checked and dated; the raw CSV and the Parquet file say the same."""

import dataclasses
import hashlib
import io
import os
import urllib.error
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines.cases import sources
from pipelines.cases.bank import source as bank
from pipelines.cases.bank.calendar import event_times
from pipelines.cases.bank.schema import FIELDS
from pipelines.contracts import Window
from pipelines.errors import DataError, IntegrityError
from pipelines.fields import frame_schema
from pipelines.params_file import load_params
from pipelines.settings import Settings

PARAMS = load_params("bank")
ALL = Window(start=datetime(2000, 1, 1, tzinfo=UTC), end=datetime(2030, 1, 1, tzinfo=UTC))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch):
    """No test reaches the network: a download fails as it does on a machine without one."""

    def refuse(*_arguments, **_keywords):
        raise urllib.error.URLError("no network here")

    monkeypatch.setattr(bank.urllib.request, "urlopen", refuse)


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> bank.Source:
    """The real file, where it lies on this machine."""
    folders = [Path(os.environ.get("PERENNIAL_DATA_DIR", "/nonexistent")), sources.BESIDE]
    if not any((folder / bank.PARQUET).exists() for folder in folders):
        pytest.skip("the bank data is neither in PERENNIAL_DATA_DIR nor in ../shared/data")
    return bank.resolve(Settings(home=tmp_path_factory.mktemp("home")), PARAMS)


def _days(rows: list[tuple[str, str, float]]) -> list[str]:
    frame = pl.DataFrame(rows, schema=["month", "day_of_week", "euribor3m"], orient="row")
    return [str(moment.date()) for moment in event_times(frame)]


def test_calling_days_are_laid_in_order():
    """Equal marks are one day, a changed rate another, and a month that goes backwards starts a year."""
    rows = [
        ("may", "mon", 4.857),
        ("may", "mon", 4.857),
        ("may", "mon", 4.86),
        ("may", "wed", 4.86),
        ("dec", "thu", 3.0),
        ("mar", "mon", 1.0),
    ]
    assert _days(rows) == ["2008-05-05", "2008-05-05", "2008-05-12", "2008-05-14", "2008-12-22", "2009-03-02"]


def test_october_2008_is_laid_from_its_end():
    """October 2008 takes the latest days that its weekdays allow."""
    assert _days([("oct", "thu", 4.8), ("oct", "fri", 4.76)]) == ["2008-10-30", "2008-10-31"]


def test_days_that_do_not_fit_are_refused():
    """Six Mondays in one month are no ordered original: the month is named."""
    with pytest.raises(DataError, match="2008-05"):
        _days([("may", "mon", 4.0 + rate) for rate in range(6)])


def test_hours_are_spread_over_the_working_day_in_lisbon():
    """The only row of a day is put at half past one in Lisbon, which is UTC+1 in summer."""
    frame = pl.DataFrame({"month": ["jul"], "day_of_week": ["tue"], "euribor3m": [1.0]})
    assert event_times(frame).to_list() == [datetime(2008, 7, 1, 12, 30, tzinfo=UTC)]


def test_without_data_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With no file anywhere and no network, the error names the file and the setting that helps."""
    monkeypatch.setattr(sources, "BESIDE", tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"bank_marketing\.parquet in any folder.*no network here.*set PERENNIAL_DATA_DIR"
    ):
        bank.resolve(Settings(home=tmp_path, data_dir=None), PARAMS)


def test_another_file_under_the_name_is_refused(tmp_path: Path):
    """A file with other bytes is not used, and not passed over in silence either."""
    (tmp_path / bank.PARQUET).write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="replace or remove it"):
        bank.resolve(Settings(home=tmp_path, data_dir=tmp_path), PARAMS)


def test_the_csv_is_found_in_the_zip_in_the_zip():
    """UCI's archive holds an archive that holds the CSV; anything else is refused by name."""
    inner, outer = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("bank-additional/bank-additional-full.csv", "a;b\n")
    with zipfile.ZipFile(outer, "w") as archive:
        archive.writestr("bank-additional.zip", inner.getvalue())
    assert bank.unpack(outer.getvalue()) == b"a;b\n"
    with pytest.raises(IntegrityError, match="not the expected archive"):
        bank.unpack(b"<html>")


def test_a_download_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second resolve takes the file that the first one downloaded, and says so."""
    text = b"month;x\n"
    monkeypatch.setattr(sources, "BESIDE", tmp_path / "nowhere")
    monkeypatch.setattr(bank, "CSV_SHA256", hashlib.sha256(text).hexdigest())
    monkeypatch.setattr(bank, "_download", lambda: text)
    settings = Settings(home=tmp_path, data_dir=None)
    assert "downloaded" in bank.resolve(settings, PARAMS).why
    monkeypatch.setattr(bank, "_download", lambda: pytest.fail("downloaded twice"))
    assert "kept from an earlier download" in bank.resolve(settings, PARAMS).why


def test_the_real_rows_are_canonical(real: bank.Source):
    """All declared columns and no other, the call's duration least of all; labels arrive 30 days later."""
    rows = bank.rows(real, ALL, PARAMS)
    assert dict(rows.schema) == frame_schema(FIELDS)
    assert rows.height == 39_394
    assert (rows["label_time"] - rows["event_time"]).dt.total_days().unique().to_list() == [30]
    assert rows["event_time"].is_sorted()
    assert real.kind == "real"
    assert "CC BY 4.0" in real.notice


def test_dates_are_laid_as_in_the_file(real: bank.Source):
    """The rows stripped of their dates get the very same dates and times back."""
    frame = pl.read_parquet(real.path)
    assert event_times(frame.drop("event_time")).equals(
        frame["event_time"].cast(pl.Datetime("us", "UTC")), check_names=False
    )


def test_the_raw_csv_gives_the_same_rows(real: bank.Source, tmp_path: Path):
    """A CSV in the original's form gives, row by row, what the Parquet file gives."""
    frame = pl.read_parquet(real.path).drop("id", "event_time", "date_exact", "exact_dup")
    original = {
        name: name.replace("_", ".") for name in ("emp_var_rate", "cons_price_idx", "cons_conf_idx", "nr_employed")
    }
    raw = frame.rename({**original, "credit_default": "default", "subscribed": "y", "duration_s_LEAKY": "duration"})
    raw.with_columns(pl.col("y").replace_strict({0: "no", 1: "yes"}, return_dtype=pl.String)).write_csv(
        tmp_path / "raw.csv", separator=";"
    )
    from_csv = bank.rows(dataclasses.replace(real, path=tmp_path / "raw.csv"), ALL, PARAMS)
    assert from_csv.equals(bank.rows(real, ALL, PARAMS))


def test_rows_outside_the_period_are_dropped(real: bank.Source):
    """The case's period bounds what the source delivers, however wide the window."""
    params = PARAMS.model_copy(update={"period": (datetime(2008, 6, 2, tzinfo=UTC), datetime(2008, 6, 3, tzinfo=UTC))})
    assert bank.rows(real, ALL, params).height == 373
