"""Parameters: what is read from where, and what cannot work is refused by name."""

import pytest
import yaml

from pipelines.config import CASES_ROOT, ModelParams, Settings, TextModelParams, load_params
from pipelines.errors import ConfigError


@pytest.fixture
def bank():
    """The bank case's parameters as plain values."""
    return yaml.safe_load((CASES_ROOT / "bank" / "params.yaml").read_text())


def written(tmp_path, values):
    """A params file with ``values``."""
    path = tmp_path / "bank.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_the_kind_of_model_decides_what_it_takes(tmp_path, bank):
    """Without a kind the model is tabular; kind encoder takes the text model's keys, and refuses the others."""
    assert isinstance(load_params("bank", written(tmp_path, bank)).model, ModelParams)
    text = bank | {"model": {"kind": "encoder", "encoder": "some/encoder", "max_tokens": 128}}
    assert isinstance(load_params("bank", written(tmp_path, text)).model, TextModelParams)
    text["model"]["hidden"] = [32]
    with pytest.raises(ConfigError, match="hidden"):
        load_params("bank", written(tmp_path, text))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"strategy": "single", "ranks": 2}, "strategy single"),
        ({"batch_size": 33, "ranks": 2}, "batch_size 33"),
        ({"batch_size": 32, "ranks": 2, "accumulate": 3}, "micro-batch"),
        ({"patience": 2}, "validation_share"),
        ({"zero_stage": 4}, "zero_stage"),
    ],
)
def test_training_parameters_that_contradict_each_other_are_refused(tmp_path, bank, change, word):
    """The message names the parameter and its value before anything is trained."""
    bank["train"] |= change
    with pytest.raises(ConfigError, match=word):
        load_params("bank", written(tmp_path, bank))


def test_what_ships_must_be_exported(tmp_path, bank):
    """Shipping the int8 variant without exporting it is refused."""
    with pytest.raises(ConfigError, match="int8"):
        load_params("bank", written(tmp_path, bank | {"export": {"ship": "int8"}}))


def test_a_folder_of_parameters_stands_in_for_the_cases_own(tmp_path, bank, monkeypatch):
    """With PERENNIAL_PARAMS_DIR a case whose file lies there takes it, and the others keep theirs."""
    bank["train"]["seed"] = 12345
    written(tmp_path, bank)
    monkeypatch.setenv("PERENNIAL_PARAMS_DIR", str(tmp_path))
    assert load_params("bank").train.seed == 12345
    assert load_params("loans") == load_params("loans", CASES_ROOT / "loans" / "params.yaml")


def test_a_setting_can_come_from_a_file(tmp_path, monkeypatch):
    """PERENNIAL_<NAME>_FILE names a file that holds the value; the plain variable wins, and what is given in code wins over both."""
    (tmp_path / "url").write_text("postgresql+psycopg://ledger:p@db/ledger\n")
    (tmp_path / "password").write_text("geheim\n")
    monkeypatch.setenv("PERENNIAL_LEDGER_URL_FILE", str(tmp_path / "url"))
    monkeypatch.setenv("PERENNIAL_MLFLOW_PASSWORD_FILE", str(tmp_path / "password"))
    settings = Settings()
    assert settings.ledger == "postgresql+psycopg://ledger:p@db/ledger"
    assert settings.mlflow_password.get_secret_value() == "geheim"
    assert "geheim" not in repr(settings)
    monkeypatch.setenv("PERENNIAL_LEDGER_URL", "sqlite:///a")
    assert Settings().ledger == "sqlite:///a"
    assert Settings(ledger_url="sqlite:///b").ledger == "sqlite:///b"


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_or_empty_secret_names_its_variable(tmp_path, monkeypatch, there):
    """A secret's file that is not there or empty is an error that names variable and file: never a silent default."""
    path = tmp_path / "url"
    if there:
        path.write_text("\n")
    monkeypatch.setenv("PERENNIAL_LEDGER_URL_FILE", str(path))
    with pytest.raises(ConfigError, match=rf"PERENNIAL_LEDGER_URL_FILE names {path}, which .*`make secrets`"):
        Settings()


def test_a_variable_that_names_no_file_is_none(monkeypatch):
    """An empty PERENNIAL_..._FILE, as compose leaves an optional one, counts as not set."""
    monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK_FILE", "")
    assert Settings().alert_webhook is None
