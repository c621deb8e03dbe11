"""Parameters: what is read from where, and what cannot work is refused by name."""

import subprocess
import sys
import time
from itertools import pairwise

import pytest
import yaml

from pipelines.case_files import CASES_ROOT, case_names
from pipelines.errors import ConfigError
from pipelines.params import ModelParams, RolloutParams, TextModelParams
from pipelines.params_file import load_params, read_yaml
from pipelines.settings import Settings
from tests import shop


@pytest.fixture
def bank():
    """The bank case's parameters with a network, as plain values."""
    return yaml.safe_load((CASES_ROOT / "bank" / "variants" / "network" / "bank.yaml").read_text())


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


AB = {"steps": [0.5, 1.0], "experiment": {"outcome": "revenue", "horizon_hours": 24, "units": 4000}}


def experiment(**change):
    """A rollout with an experiment, changed."""
    return AB | {"experiment": AB["experiment"] | change}


def bandit(**change):
    """A rollout with a bandit, changed."""
    return experiment(outcome="label", units=None, bandit=True, **change)


@pytest.mark.parametrize(
    ("rollout", "word"),
    [
        (AB | {"steps": [1.0]}, "compares two arms, and the first step is 1.0"),
        ({"preset": "instant"} | {"experiment": AB["experiment"]}, "compares two arms"),
        (experiment(outcome="my revenue"), "outcome"),
        (experiment(horizon_hours=0), "horizon_hours"),
        (experiment(units=10), "units"),
        (experiment(better="more"), "better"),
        (experiment(bounds=[0.2, 0.8]), "bounds and every_hours need bandit: true"),
        (experiment(bandit=True), "bandit moves the weight, and outcome is revenue"),
        (experiment(outcome="label", bandit=True), "bandit moves the weight, and units are 4000"),
        (experiment(units=None), "needs units, at which it ends, or effect"),
        (experiment(effect=2.0), "effect and units are both given"),
        (bandit(bounds=[0.9, 0.2]), "0.9 is not below 0.2"),
        (bandit(bounds=[0.5, 1.0]), "leave the champion some keys"),
        (bandit() | {"steps": [0.05, 1.0]}, "the rollout begins at 0.05"),
        (AB | {"guard": None}, "needs a guard"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(tmp_path, bank, rollout, word):
    """The message names what contradicts what, before anything is rolled out."""
    for sound in (AB, bandit(), bandit(bounds=[0.2, 0.6], every_hours=6)):
        load_params("bank", written(tmp_path, bank | {"rollout": sound}))
    with pytest.raises(ConfigError, match=word):
        load_params("bank", written(tmp_path, bank | {"rollout": rollout}))


def test_labels_of_classes_cannot_be_the_outcome_of_an_experiment(tmp_path):
    """Classes have no mean to compare: a case with classes is sent to figures, which it may have."""
    values = yaml.safe_load((CASES_ROOT / "triage" / "params.yaml").read_text())
    path = tmp_path / "triage.yaml"
    path.write_text(yaml.safe_dump(values | {"rollout": experiment(outcome="label")}))
    with pytest.raises(ConfigError, match=r"rollout\.experiment\.outcome.*post a figure"):
        load_params("triage", path)
    path.write_text(yaml.safe_dump(values | {"rollout": AB}))
    assert load_params("triage", path).rollout.experiment.outcome == "revenue"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"bandit": True, "units": None}, "experiment.bandit"),
        ({"units": None}, "needs units, at which it ends, or effect"),
        ({"units": None, "effect": 2.0}, ""),
    ],
)
def test_an_experiment_on_a_number_needs_an_end_or_a_size(tmp_path, change, word):
    """Where the label is a number it takes units or an effect, and no bandit; the unit is named."""
    values = yaml.safe_load((CASES_ROOT / "flights" / "params.yaml").read_text())
    path = tmp_path / "flights.yaml"
    path.write_text(yaml.safe_dump(values | {"rollout": experiment(outcome="label", **change)}))
    if word:
        with pytest.raises(ConfigError, match=word):
            load_params("flights", path)
    else:
        assert load_params("flights", path).rollout.experiment.effect == 2


def test_a_rollout_without_an_experiment_is_written_as_before():
    """A plan that declares no experiment has no word of one, so that rows and hashes of before stay as they are."""
    assert "experiment" not in RolloutParams(steps=(0.5, 1.0)).model_dump(mode="json")
    plan = RolloutParams.model_validate(AB)
    assert RolloutParams.model_validate(plan.model_dump(mode="json")) == plan


def mistakes(tmp_path, case: str, *changes: tuple[str, str]) -> dict[str, str]:
    """What is said of a case's own params.yaml with some texts in it exchanged: by place."""
    text = (CASES_ROOT / case / "params.yaml").read_text()
    for old, new in changes:
        assert text.count(old) >= 1, old
        text = text.replace(old, new, 1)
    path = tmp_path / f"{case}.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_params(case, path)
    head, _, tail = str(caught.value).partition(" mistake(s): ")
    found = dict(one.split(": ", 1) for one in tail.split("; "))
    assert head == f"{path} has {len(found)}"
    return found


@pytest.mark.parametrize(
    ("case", "old", "new", "place", "words"),
    [
        ("loans", "  epochs: 15", "  epochs: 15\n  epochs: 3", "train.epochs", "line 26 and again in line 27"),
        (
            "loans",
            "label_delay_days: 7",
            "label_delay_days: 7\nlabel_delay_days: 0",
            "label_delay_days",
            "line 4 and again in line 5",
        ),
        (
            "loans",
            "owners: {quality",
            "owners: {labels_late: me, quality",
            "alerts.owners.labels_late",
            "again in line",
        ),
        ("loans", "slices: [education]", "slices: [educatoin]", "gate.slices.0", "did you mean 'education'"),
        (
            "loans",
            "slices: [education]",
            "slices: [education, salary]",
            "gate.slices.1",
            "no category, whole number or label",
        ),
        ("loans", "slices: [education]", "slices: [{field: salary, bins: [50, 50]}]", "gate.slices.0.bins", "rising"),
        ("loans", "slices: [education]", "slices: [{field: salary, bins: []}]", "gate.slices.0.bins", "at least 1"),
        ("loans", "slices: [education]", "slices: [{field: education, bins: [3]}]", "gate.slices.0.field", "no number"),
        ("bank", "slices: [contact, poutcome]", "slices: [contact, euribor3m]", "gate.slices.1", "give bins, as in"),
        ("bank", "slices: [contact, poutcome]", "slices: [contact, contact]", "gate", "names contact twice"),
        ("bank", "metric: log_loss", "metric: rmse", "gate.metric", "which is binary: choose one of log_loss"),
        ("triage", "metric: log_loss", "metric: roc_auc", "gate.metric", "one of several classes"),
        ("bank", "metric: log_loss", "metric: logloss", "gate.metric", "'log_loss'"),
        (
            "bank",
            "metric: log_loss",
            "metric: log_loss\n  floors: {mae: 3}",
            "gate.floors.mae",
            "does not fit the label",
        ),
        ("bank", "metric: log_loss", "metric: cost", "gate", "the cost needs costs"),
        ("bank", "metric: log_loss", "metric: cost\n  costs: [[0, 1]]", "gate", "square"),
        ("triage", "metric: log_loss", "metric: cost\n  costs: [[0, 1], [1, 0]]", "gate.costs", "11 classes"),
        ("bank", "metric: log_loss", "metric: pinball\n  quantile: 0.9", "gate.metric", "does not fit"),
        ("triage", "slices: []", "slices: [text]", "gate.slices.0", "choose one of team"),
        ("loans", "draws: 2000", "draws: 2000\n  baseline: educatoin", "gate.baseline", "did you mean 'education'"),
        ("loans", "draws: 2000", "draws: 2000\n  baseline: salary", "gate.baseline", "no category or flag"),
        ("triage", "draws: 2000", "draws: 2000\n  baseline: text", "gate.baseline", "of the case: remove it"),
        ("loans", "draws: 2000", "draws: 2000\n  baseline: 3", "gate.baseline", "valid string"),
        (
            "bank",
            "ignore: [month, day_of_week]",
            "ignore: [month, weekday]",
            "drift.ignore.1",
            "nothing that is measured",
        ),
        ("triage", "partition: day", "partition: day\n  ignore: [text]", "drift.ignore.0", "text.words"),
        ("loans", "rows_per_day: 400", "rows_per_dya: 400", "source.rows_per_dya", "did you mean 'rows_per_day'"),
        ("triage", "variant: embedding", "variant: embeding", "replay.variant", "did you mean 'embedding'"),
        ("loans", "epochs: 15", "epoch: 15", "train.epoch", "did you mean 'epochs'"),
        ("loans", "hidden: [64, 32]", "hiden: [64, 32]", "model.hiden", "did you mean 'hidden'"),
        ("triage", "max_tokens: 128", "max_token: 128", "model.max_token", "did you mean 'max_tokens'"),
        ("triage_fields", "hidden: [64]", "hiden: [64]", "model.hiden", "did you mean 'hidden'"),
        ("loans", "new_data: null", "new_data: {row: 5000}", "drift.new_data.row", "did you mean 'rows'"),
        ("loans", "learning_rate: 0.003", "learning_rate: 3e-3", "train.learning_rate", "as in 2.0e-5"),
        ("loans", "learning_rate: 0.003", "learning_rate: .nan", "train.learning_rate", "finite"),
        ("loans", "learning_rate: 0.003", "learning_rate: .inf", "train.learning_rate", "finite"),
        ("loans", "min_lift: 0.005", "min_lift: -.inf", "gate.min_lift", "finite"),
        ("loans", "delta0: 0.01", "delta0: 1.0e+999", "drift.delta0", "finite"),
        ("loans", "rows_per_day: 400", "rows_per_day: .nan", "source.rows_per_day", "finite"),
        ("loans", "volume_band: [0.2, 5.0]", "volume_band: [5.0, 0.2]", "drift.volume_band", "5 is not below 0.2"),
        ("loans", "volume_band: [0.2, 5.0]", "volume_band: [0.2, .inf]", "drift.volume_band.1", "finite"),
        (
            "loans",
            "min_new_labels: [1000, 200, 0.1]",
            "min_new_labels: [100, 200, 0.1]",
            "drift.min_new_labels",
            "at least 200",
        ),
        (
            "bank",
            "2008-05-05T00:00:00Z, 2010",
            "2011-05-05T00:00:00Z, 2010",
            "period",
            "2011-05-05T00:00:00+00:00 is not below 2010",
        ),
        ("loans", "until: 2020-07-20", "until: 2020-05-25", "replay.until", "first_as_of 2020-05-25"),
        ("loans", "severe_psi: 0.25", "severe_psi: 0.05", "drift.severe_psi", "below warn_psi 0.1"),
        ("loans", "warn_psi: 0.1", "warn_psi: 0.01", "drift.warn_psi", "below clean_psi 0.05"),
        (
            "loans",
            "max_cooldown_days: 28.0",
            "max_cooldown_days: 2.0",
            "drift.max_cooldown_days",
            "below cooldown_days 7.0",
        ),
        ("loans", "out_of: 3", "out_of: 1", "drift.out_of", "below confirm 2"),
        ("loans", "label_delay_days: 7", "label_delay_days: 1.0e+300", "label_delay_days", "36500"),
        ("loans", "seed: 0", "seed: -1", "train.seed", "greater than or equal to 0"),
        ("loans", '"0 2 * * *"', '"0 25 * * *"', "schedule.drift", "is no cron expression"),
        ("loans", '"0 2 * * *"', '"every day"', "schedule.drift", "is no cron expression"),
        ("loans", '"0 3 * * 1"', '"0 0 30 2 *"', "schedule.training", "never comes"),
        ("loans", '"0 3 * * 1"', '"0 0 31 4,6,9,11 *"', "schedule.training", "never comes"),
        (
            "bank",
            "  device: cpu",
            "  device: cpu\nrollout: {preset: safe, key: jbo}",
            "rollout.key",
            "no field or attribute of the case: did you mean 'job'",
        ),
        ("bank", "  device: cpu", "  device: cpu\n  instances: 0", "serving.instances", "greater than or equal to 1"),
        ("bank", "  device: cpu", "  device: cpu\n  instance: 2", "serving.instance", "did you mean 'instances'"),
        (
            "bank",
            "  device: cpu",
            "  device: cpu\n  batching: {window_ms: 21}",
            "serving.batching.window_ms",
            "less than or equal to 20",
        ),
        (
            "bank",
            "  device: cpu",
            "  device: cpu\n  batching: {preferred_rows: [8, 4]}",
            "serving.batching.preferred_rows",
            "must rise",
        ),
        (
            "bank",
            "  device: cpu",
            "  device: cpu\n  batching: {preferred_rows: [2048]}",
            "serving.batching.preferred_rows.0",
            "less than or equal to 1024",
        ),
        (
            "bank",
            "  device: cpu",
            "  device: cpu\n  batching: {queue: {size: -1}}",
            "serving.batching.queue.size",
            "greater than or equal to 0",
        ),
        ("bank", "  device: cpu", "  device: cpu\n  deadline_seconds: 0", "serving.deadline_seconds", "greater than 0"),
        (
            "bank",
            "  device: cpu",
            "  device: cpu\n  slo: {p95_ms: 30, p99_ms: 20}",
            "serving.slo.p99_ms",
            "below p95_ms 30",
        ),
    ],
)
def test_a_mistake_in_the_parameters_is_named_when_they_are_loaded(tmp_path, case, old, new, place, words):
    """Keys that stand twice, names that the case does not have, numbers and ranges that cannot be.

    Schedules that never come, too: each is told with its place.
    """
    found = mistakes(tmp_path, case, (old, new))
    assert words in found[place], found
    # A key that is written wrongly is missing, too.
    assert [name for name, what in found.items() if name != place and what != "Field required"] == []


def test_all_mistakes_are_listed_together(tmp_path):
    """One load names every mistake of a file, whatever its kind."""
    changes = [
        ("  epochs: 15", "  epochs: 15\n  epochs: 0"),
        ("slices: [education]", "slices: [educatoin, zipcod]"),
        ('"0 2 * * *"', '"0 0 30 2 *"'),
        ("volume_band: [0.2, 5.0]", "volume_band: [5.0, 0.2]\n  ignore: [nothing]"),
        ("severe_psi: 0.25", "severe_psi: .nan"),
        ("rows_per_day", "rows_a_day"),
    ]
    assert set(mistakes(tmp_path, "loans", *changes)) == {
        "train.epochs",
        "gate.slices.0",
        "gate.slices.1",
        "schedule.drift",
        "drift.volume_band",
        "drift.ignore.0",
        "drift.severe_psi",
        "source.rows_a_day",
    }


@pytest.mark.parametrize(
    "cron",
    [
        "0 0 29 2 *",
        "0 0 30 2 1",
        "*/5 * * * *",
        "0 3 * * mon-fri",
        "@daily",
        "@quarterly",
        "30 4 1,15 * 5",
        "0 0 31 1,4 *",
    ],
)
def test_a_schedule_that_comes_is_taken(tmp_path, cron):
    """Leap days, names, steps, presets, and a day of the month or of the week are schedules."""
    text = (CASES_ROOT / "loans" / "params.yaml").read_text().replace('"0 3 * * 1"', f'"{cron}"')
    (tmp_path / "loans.yaml").write_text(text)
    assert load_params("loans", tmp_path / "loans.yaml").schedule.training == cron


def test_a_window_may_be_thinned_below_its_least_rows(tmp_path):
    """`min_rows` counts the rows of the window before `max_rows` thins them, so a smaller `max_rows` is no mistake."""
    text = (CASES_ROOT / "triage" / "params.yaml").read_text()
    (tmp_path / "triage.yaml").write_text(text.replace("max_rows: 6000", "max_rows: 600"))
    found = load_params("triage", tmp_path / "triage.yaml").dataset
    assert found.max_rows == 600 < found.min_rows


def test_parameters_that_are_shipped_have_no_mistake():
    """Every params.yaml and every variant below the cases loads."""
    files = {path: path.stem for path in CASES_ROOT.glob("*/variants/*/*.yaml")} | {
        CASES_ROOT / case / "params.yaml": case for case in case_names()
    }
    assert len(files) >= 5
    for path, case in files.items():
        assert load_params(case, path).case == case


def test_settings_may_be_read_by_code_that_a_case_shares(tmp_path):
    """A case that takes another one's source, or a module beside it, has the settings that are read there.

    It has no others.
    """
    with shop.installed(tmp_path / "cases") as root:
        folder = shop.write(root)
        (root / "tables.py").write_text("def read(params): return params.source['table']\n")
        for name, known in (("table", True), ("rows_per_day", True), ("tabel", False)):
            values = yaml.safe_load((folder / "params.yaml").read_text()) | {"source": {name: 1}}
            (folder / "params.yaml").write_text(yaml.safe_dump(values))
            if known:
                assert load_params("shop").source == {name: 1}
            else:
                with pytest.raises(ConfigError, match=r"source\.tabel: nothing in the case's code"):
                    load_params("shop")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "a: &a [lol, lol, lol]\n"
            + "".join(f"{two}: &{two} [{', '.join([f'*{one}'] * 9)}]\n" for one, two in pairwise("abcdefghijkl")),
            "line 1: &a",
        ),
        ("one: 1\ntwo: *one\n", r"line 2: \*one is an alias"),
        ("three:\n  <<: {a: 1}\n  a: 2\n", "line 2: << merges another block"),
        ("[" * 5_000, "line 1: more than 20 levels"),
        ("a: " * 3_000 + "1", "is not YAML"),
        ("{a: " * 3_000, "line 1: more than 20 levels"),
        (f"a: 0x{'f' * 60_000}\n", "no plain data"),
        (f"a: {'9' * 60_000}\n", "no plain data"),
        ("a: 1" + ":59" * 20_000 + "\n", "no plain data"),
        ("a: " + "x" * 70_000, "more than 64 KiB"),
        ("".join(f"key{number}: 1\n" for number in range(4_000)), r"at least \d+ mistake"),
        ("source:\n" + "".join(f"  key{number}: 1\n" for number in range(4_000)), r"at least \d+ mistake"),
        (f"gate: {{slices: [{', '.join(f's{number}' for number in range(4_000))}]}}\n", r"at least \d+ mistake"),
    ],
    ids=[
        "laughs",
        "alias",
        "merge",
        "lists",
        "keys",
        "blocks",
        "hexadecimal",
        "decimal",
        "sexagesimal",
        "large",
        "unknown",
        "source",
        "slices",
    ],
)
def test_parameters_that_could_not_end_are_refused_at_once(tmp_path, text, said):
    """What a YAML file can do to its reader is one clear sentence within five seconds of CPU.

    Aliases, merged keys, deep nesting, huge numbers, files and lists of mistakes.
    """
    path = tmp_path / "bank.yaml"
    began = time.process_time()
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as refused:
        load_params("bank", path)
    assert time.process_time() - began < 5
    assert len(str(refused.value)) < 20_000


def test_a_key_that_stands_twice_below_a_list_is_found(tmp_path):
    """It is named with both lines."""
    path = tmp_path / "any.yaml"
    path.write_text("list:\n- a: 1\n  b: 2\n  a: 3\n")
    with pytest.raises(ConfigError, match=r"list\.0\.a: stands in line 2 and again in line 4"):
        read_yaml(path)


def test_loading_the_cases_stays_light():
    """Reading the parameters of every case imports neither a numeric library nor the one for cron expressions.

    DAG files are parsed all the time.
    """
    code = (
        "import sys; from pipelines.case_files import case_names; from pipelines.params_file import load_params; "
        "[load_params(case) for case in case_names()]; print(sorted({'croniter', 'numpy', 'polars'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_price_of_a_retraining_has_one_home(tmp_path, bank):
    """A file of an earlier release names it in the replay's block; beside the new name the old one is refused."""
    old = {name: block for name, block in bank.items() if name != "headroom"}
    old["replay"] = bank["replay"] | {"price_per_retrain": 0.03}
    found = load_params("bank", written(tmp_path, old))
    assert (found.headroom.price, found.replay) == (0.03, load_params("bank").replay)
    with pytest.raises(ConfigError, match=r"replay\.price_per_retrain: there is no such key"):
        load_params("bank", written(tmp_path, old | {"headroom": {"price": 0.03}}))


def test_a_case_without_a_probe_of_its_own_cannot_ask_for_it(tmp_path, bank):
    """Family ``own`` needs the case's probe.py; without it the mistake is named when the parameters are loaded."""
    with pytest.raises(ConfigError, match=r"headroom\.family: the case has no probe\.py: write it"):
        load_params("bank", written(tmp_path, bank | {"headroom": {"family": "own"}}))


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
    """PERENNIAL_<NAME>_FILE names a file that holds the value.

    The plain variable wins, and what is given in code wins over both.
    """
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
