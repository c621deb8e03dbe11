"""embedded/seed.py: the reference data that is pinned, byte for byte.

Its exit code says whether every live case has a champion.
"""

import hashlib
import shutil
from types import SimpleNamespace

import pytest
import yaml

from embedded import seed
from pipelines.errors import ConfigError, IntegrityError


def test_the_reference_data_is_what_is_pinned(tmp_path):
    """The pinned rows are put in place with the bytes that data.dvc names, and a second time nothing is."""
    new = seed.reference_data(tmp_path)
    assert new == ["loans.parquet"]
    assert (
        sum(path.stat().st_size for path in tmp_path.iterdir())
        == yaml.safe_load((seed.ROOT / "data.dvc").read_text())["outs"][0]["size"]
    )
    assert seed.reference_data(tmp_path) == []


def test_a_changed_file_is_put_right(tmp_path):
    """Rows that were changed in place are replaced by the pinned ones; other files stay."""
    seed.reference_data(tmp_path)
    right = hashlib.md5((tmp_path / "loans.parquet").read_bytes()).digest()
    (tmp_path / "loans.parquet").write_bytes(b"changed")
    (tmp_path / "bank.csv").write_bytes(b"mine")
    assert seed.reference_data(tmp_path) == ["loans.parquet"]
    assert hashlib.md5((tmp_path / "loans.parquet").read_bytes()).digest() == right
    assert (tmp_path / "bank.csv").read_bytes() == b"mine"


@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_store_that_is_not_the_pinned_one_is_refused(tmp_path, how):
    """A file of the store that is missing or has other bytes is refused by name, and nothing is put in place."""
    shutil.copytree(seed.ROOT / "dvc_remote", tmp_path / "dvc_remote")
    shutil.copy(seed.ROOT / "data.dvc", tmp_path)
    largest = max(
        (path for path in (tmp_path / "dvc_remote").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    largest.chmod(0o644)
    largest.write_bytes(b"x") if how == "changed" else largest.unlink()
    with pytest.raises(IntegrityError, match=largest.name):
        seed.reference_data(tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("champions", "code"), [([("loans", 1)], 0), ([], 1)])
def test_the_exit_code_says_whether_every_live_case_has_a_champion(tmp_path, monkeypatch, capsys, champions, code):
    """A seed that ends without a first champion is a failure that compose tries again."""
    monkeypatch.delenv("PERENNIAL_DATA_DIR", raising=False)  # else it would go there
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.setenv("PERENNIAL_AIRFLOW_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(seed, "open_live_cases", lambda *_arguments: ["loans"])
    monkeypatch.setattr(
        seed.probe,
        "champions",
        lambda _home: [SimpleNamespace(case=case, champion=version) for case, version in champions],
    )
    assert seed.main() == code
    assert ("version 1 serves" if champions else "no champion yet") in capsys.readouterr().out
    assert (tmp_path / "data" / "loans.parquet").exists()


def test_a_mistake_in_the_settings_is_one_sentence(tmp_path, monkeypatch, capsys):
    """A secret that is not there ends the seed with the variable's name, not with a traceback."""
    monkeypatch.setenv("PERENNIAL_LEDGER_URL_FILE", str(tmp_path / "nothing"))
    assert seed.main() == ConfigError.exit_code
    assert "PERENNIAL_LEDGER_URL_FILE" in capsys.readouterr().err
