"""pipelines/steps/validate.py: a few bad rows are set apart, many stop the run before training."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from pipelines import storage
from pipelines.cases.loans import source as loans
from pipelines.contracts import Window
from pipelines.errors import ConfigError, DataError
from pipelines.params_file import load_params
from pipelines.settings import Settings
from tests.pipelines.manifests import renew
from tests.pipelines.verbs import ingest, validate

AS_OF = datetime(2020, 6, 1, tzinfo=UTC)
_DEFAULTS = load_params("loans")
PARAMS = _DEFAULTS.model_copy(
    update={
        "dataset": _DEFAULTS.dataset.model_copy(update={"window_days": 5, "fallback_rows": 100}),
        "source": {**_DEFAULTS.source, "rows_per_day": 100},
    }
)


def _ingest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad_per_day: int) -> tuple[Settings, Path]:
    """Ingest a stream in which the first rows of each day have an age that nobody has."""
    original = loans.pieces

    def pieces(source: loans.Source, window: Window, params) -> Iterator[pl.DataFrame]:
        number = pl.col("id").str.slice(-4).cast(pl.Int64)
        age = pl.when(number < bad_per_day).then(pl.lit(7.0)).otherwise(pl.col("age")).alias("age")
        return (frame.with_columns(age) for frame in original(source, window, params))

    monkeypatch.setattr(loans, "pieces", pieces)
    settings = Settings(home=tmp_path)
    run_dir = settings.run_dir("loans", AS_OF)
    ingest.run(PARAMS, settings, run_dir, AS_OF)
    return settings, run_dir


def test_bad_rows_go_to_quarantine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Four of a hundred may be bad: they lie in quarantine.parquet with their reason, the others in rows.parquet."""
    settings, run_dir = _ingest(tmp_path, monkeypatch, bad_per_day=4)
    manifest = validate.run(PARAMS, settings, run_dir, AS_OF)
    bad = pl.read_parquet(run_dir / "validate" / "quarantine.parquet")
    assert manifest.facts["bad"] == bad.height
    assert manifest.facts["bad_share"] == pytest.approx(0.04)
    assert manifest.facts["reasons"] == {"age: below 18": bad.height}
    assert set(bad["reasons"]) == {"age: below 18"}
    assert pl.read_parquet(run_dir / "validate" / "rows.parquet")["age"].min() >= 18
    assert validate.run(PARAMS, settings, run_dir, AS_OF) == manifest


def test_too_many_bad_rows_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Six of a hundred stop it: count, share, reason and the quarantine's place are named, and no manifest is left."""
    settings, run_dir = _ingest(tmp_path, monkeypatch, bad_per_day=6)
    with pytest.raises(DataError, match=r"rows \(6\.0%\) break the contract, 5% may: age: below 18 \(\d+\)") as caught:
        validate.run(PARAMS, settings, run_dir, AS_OF)
    [kept] = (tmp_path / "lake" / "loans" / "quarantine" / "rows").glob("*.parquet")
    assert str(kept) in str(caught.value)
    assert set(pl.read_parquet(kept)["reasons"]) == {"age: below 18"}
    with pytest.raises(ConfigError, match="run the step 'validate' first"):
        storage.read_manifest(run_dir / "validate")


def test_a_manifest_of_before_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Rows that were ingested before anybody counted what did not become a row are validated as they are."""
    settings, run_dir = _ingest(tmp_path, monkeypatch, bad_per_day=1)
    manifest = storage.read_manifest(run_dir / "ingest")
    facts = {name: value for name, value in manifest.facts.items() if name not in {"counts", "reasons"}}
    renew(run_dir / "ingest", facts=facts)
    facts = validate.run(PARAMS, settings, run_dir, AS_OF).facts
    assert facts["rows"] + facts["bad"] == manifest.facts["rows"]
    assert "delivered" not in facts


def test_without_ingest_it_says_what_to_run(tmp_path: Path):
    """The step before is named if it has not run."""
    settings = Settings(home=tmp_path)
    with pytest.raises(ConfigError, match="run the step 'ingest' first"):
        validate.run(PARAMS, settings, settings.run_dir("loans", AS_OF), AS_OF)
