"""Every family of estimators with every kind of target, on a table with every kind of field."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from pipelines import runtime
from pipelines.cases.receiving import receive
from pipelines.encoding import encode, encoder, find_scales
from pipelines.errors import ConfigError, DataError, IntegrityError
from pipelines.estimators import families
from pipelines.estimators.families import Running
from pipelines.estimators.fitting import Labelled, Stopping, fit
from pipelines.estimators.onnx import graph, learned_sha256
from pipelines.export.bundle import check_parity, neighbours
from pipelines.export.onnx import of_estimator
from pipelines.fields import Binary, Categorical, Classes, Number, Numeric
from pipelines.params import EstimatorParams
from pipelines.params_file import load_params
from tests.conformance.table import (
    CASE,
    EVERYTHING,
    TEXT,
    WINDOW,
    bundle_of,
    declare,
    delivered,
    installed,
    own_answers,
)

TARGETS = {"binary": Binary(), "classes": Classes(("a", "b", "c")), "number": Number("minutes", -5, 5)}
PIPELINE = {"steps": [["scale", {"family": "sklearn:StandardScaler"}], ["pca", {"family": "sklearn:PCA"}]]}
FAMILIES = {
    "lightgbm": {"n_estimators": 15, "min_child_samples": 5},
    "xgboost": {"n_estimators": 15},
    "sklearn:HistGradientBoosting": {"max_iter": 15},
    "sklearn:RandomForest": {"n_estimators": 10, "max_depth": 6},
    "linear": {},
    "sklearn:Pipeline": PIPELINE,
}
ONE = Running(seed=0, threads=1)


def family(name, fields, **more):
    """The parameters of a family as it is called for the target."""
    kind = "Regressor" if fields.number else "Classifier"
    linear = "sklearn:Ridge" if fields.number else "sklearn:LogisticRegression"
    parameters = {**FAMILIES.get(name, {}), **more}
    if name == "sklearn:Pipeline":
        parameters = {"steps": [*PIPELINE["steps"], ["model", {"family": linear}]]}
    if name in {"sklearn:HistGradientBoosting", "sklearn:RandomForest"}:
        name += kind
    return EstimatorParams(kind="estimator", family=linear if name == "linear" else name, parameters=parameters)


@pytest.fixture(scope="module", params=TARGETS)
def table(request, tmp_path_factory):
    """A declaration with every kind of field and what is derived of them, and its canonical rows."""
    fields = declare(*EVERYTHING, target=TARGETS[request.param], derived=True)
    with installed(tmp_path_factory.mktemp("cases"), fields):
        rows = receive(delivered(fields), fields, WINDOW, load_params(CASE)).rows
        yield fields, rows


def labelled(fields, rows):
    """Canonical rows as a training has them."""
    columns = rows.select(fields.reads).to_dict(as_series=False)
    return Labelled(encode(fields, columns, find_scales(fields, columns)), rows[fields.label].to_numpy())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bundle_answers_what_the_estimator_answers(table, name, tmp_path):
    """On rows with missing, unseen and extreme values, random rows and rows at the ends of what fields take."""
    fields, rows = table
    trained = bundle_of(fields, rows, tmp_path, family(name, fields))
    own = own_answers(trained, fields, rows, tmp_path)
    columns = rows.select(fields.reads).to_dict(as_series=False)
    found = runtime.score(tmp_path, encoder(fields, tmp_path)(columns)).reshape(own.shape)
    assert np.abs(found - own).max() <= 1e-5
    assert np.ptp(own[:, 0]) > 0.01  # rows do differ
    assert check_parity(trained, fields, tmp_path, columns, seed=0) <= 1e-5
    assert neighbours(fields, tmp_path, columns, seed=0) <= 1e-6


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "linear"])
def test_a_text_beside_everything_is_read(name, tmp_path):
    """Its words, or none where it is missing, are given beside all other kinds, and the bundle answers the same."""
    fields = declare(*EVERYTHING, TEXT, target=TARGETS["classes"], derived=True)
    with installed(tmp_path / "cases", fields):
        rows = receive(delivered(fields), fields, WINDOW, load_params(CASE)).rows
        bundle = tmp_path / "bundle"
        trained = bundle_of(fields, rows, bundle, family(name, fields))
        own = own_answers(trained, fields, rows, bundle)
        columns = rows.select(fields.reads).to_dict(as_series=False)
        assert np.abs(runtime.score_rows(bundle, fields, columns) - own).max() <= 1e-5
        assert check_parity(trained, fields, bundle, columns, seed=0) <= 1e-5
        assert neighbours(fields, bundle, columns, seed=0) <= 1e-6


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_rows_give_equal_bytes(table, name):
    """Fitted twice, a family has one graph, byte for byte, and so one hash of what was learned."""
    fields, rows = table
    one, other = (fit(family(name, fields), fields, labelled(fields, rows), ONE) for _ in range(2))
    first, second = (graph(fitted, fields).SerializeToString(deterministic=True) for fitted in (one, other))
    assert first == second
    assert learned_sha256(one, fields) == learned_sha256(other, fields)


def test_a_conversion_that_changes_answers_is_refused(tmp_path):
    """skl2onnx forgets that histogram gradient boosting had native categories: parity names it, and how far it is."""
    fields = declare(Categorical("any", tuple("abcdefghij")), Numeric("size"))
    rng = np.random.default_rng(0)
    codes, sizes = rng.integers(0, 10, 2000), rng.normal(size=2000).astype(np.float32)
    tensors = {"categorical": codes[:, None], "numeric": sizes[:, None]}
    told = EstimatorParams(
        kind="estimator",
        family="sklearn:HistGradientBoostingClassifier",
        parameters={"categorical_features": [0]},
        layout="codes",
    )
    labels = (np.isin(codes, [1, 4, 7]) ^ (sizes > 1)).astype(np.int8)
    fitted = fit(told, fields, Labelled(tensors, labels), ONE)
    trained = of_estimator(fitted, fields)
    trained.write(tmp_path)
    (tmp_path / "bundle.json").write_text("{}")
    named = r"HistGradientBoostingClassifier and ONNX Runtime differ by [0-9.e+-]+, .*skl2onnx.to_onnx"
    with pytest.raises(IntegrityError, match=named):
        check_parity(trained, fields, tmp_path, {"any": ["a"], "size": [0.0]}, seed=0)


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "sklearn:HistGradientBoosting", "sklearn:RandomForest"])
def test_no_number_falls_to_the_other_side_of_a_split(name, tmp_path):
    """Thresholds between numbers that are neighbours in float32 hold in the graph: for all rows, and not for most."""
    fields = declare(Numeric("size"), target=Number("minutes", -5, 5))
    steps = np.arange(3000, dtype=np.float32) % 300
    sizes = np.float32(1.0) + steps * np.float32(2.0**-23)
    tensors = {"categorical": np.empty((3000, 0), np.int64), "numeric": sizes[:, None]}
    labels = steps / 100 + np.random.default_rng(0).normal(0, 0.3, 3000)
    trained = of_estimator(fit(family(name, fields), fields, Labelled(tensors, labels), ONE), fields)
    trained.write(tmp_path)
    found = runtime.score(tmp_path, tensors)
    assert np.abs(found - trained.answers(tensors)[:, 0]).max() <= 1e-5


def test_a_class_without_a_training_row_is_improbable_and_not_impossible(tmp_path):
    """It gets the share of one row, the others share the rest, and the graph says the same."""
    fields = declare(*EVERYTHING, target=Classes(("a", "b", "c", "d")))
    with installed(tmp_path / "cases", fields):
        rows = receive(delivered(fields), fields, WINDOW, load_params(CASE)).rows
    rows = rows.filter(rows[fields.label] != 1)
    for name in ("lightgbm", "xgboost", "linear"):
        bundle = tmp_path / name
        trained = bundle_of(fields, rows, bundle, family(name, fields))
        own = own_answers(trained, fields, rows, bundle)
        assert own[:, 1] == pytest.approx(1 / (rows.height + 1))
        assert own.sum(1) == pytest.approx(1.0)
        columns = rows.select(fields.reads).to_dict(as_series=False)
        assert check_parity(trained, fields, bundle, columns, seed=0) <= 1e-5


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_rows_that_say_when_to_stop_stop_it(table, name):
    """Boosting ends some rounds after its loss on them was least, and its graph is that of the best round."""
    fields, rows = table
    whole = labelled(fields, rows)
    cut = 300
    older = Labelled({key: tensor[:cut] for key, tensor in whole.tensors.items()}, whole.labels[:cut])
    newest = Labelled({key: tensor[cut:] for key, tensor in whole.tensors.items()}, whole.labels[cut:])
    fitted = fit(family(name, fields, n_estimators=300), fields, older, ONE, Stopping(newest, 5))
    assert 5 < len(fitted.curve) < 300
    assert int(np.argmin(fitted.curve)) == len(fitted.curve) - 6
    longer = fit(family(name, fields, n_estimators=300), fields, older, ONE)
    assert graph(fitted, fields).ByteSize() < graph(longer, fields).ByteSize() / 2


@pytest.mark.parametrize("name", ["lightgbm", "xgboost", "linear", "sklearn:HistGradientBoosting"])
def test_a_parameter_that_no_family_knows_is_an_error(table, name):
    """It is named: a misspelled one that is passed over would train another model than the one that was meant."""
    fields, rows = table
    with pytest.raises(ConfigError, match="num_leafs"):
        fit(family(name, fields, num_leafs=4), fields, labelled(fields, rows), ONE)


def test_a_value_that_a_parameter_does_not_take_is_an_error(table):
    """scikit-learn says which parameter it is, and what it takes."""
    fields, rows = table
    with pytest.raises(ConfigError, match="max_iter"):
        fit(family("sklearn:HistGradientBoosting", fields, max_iter=-3), fields, labelled(fields, rows), ONE)


def test_a_family_of_another_kind_of_target_is_an_error(table):
    """A regressor for classes, a classifier for numbers and one without probabilities are refused before the fit."""
    fields, rows = table
    wrong = ["sklearn:LogisticRegression"] if fields.number else ["sklearn:Ridge", "sklearn:LinearSVC"]
    for name in wrong:
        with pytest.raises(ConfigError, match=r"predicts no numbers|gives no probabilities"):
            fit(EstimatorParams(kind="estimator", family=name), fields, labelled(fields, rows), ONE)


def test_what_a_family_cannot_read_is_an_error(table):
    """Holes that a family does not know are told with what to look at, and not as a library's trace."""
    fields, rows = table
    one = family("linear", fields).model_copy(update={"layout": "codes"})
    with pytest.raises(ConfigError, match=r"contains NaN.*model.layout"):
        fit(one, fields, labelled(fields, rows), ONE)


def test_a_class_that_scikit_learn_has_not_is_an_error():
    """The error says how to write one that there is."""
    fields = declare(*EVERYTHING)
    with pytest.raises(ConfigError, match="no estimator LogisticRegresion"):
        families.build(EstimatorParams(kind="estimator", family="sklearn:LogisticRegresion"), fields, ONE)


@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_a_family_that_is_not_installed_says_how_to_get_it(name, monkeypatch):
    """Optional families are imported when they are used, and the error names the extra that brings them."""

    def absent(module):
        raise ModuleNotFoundError(f"No module named {module!r}")

    monkeypatch.setattr(families, "import_module", absent)
    with pytest.raises(ConfigError, match=rf"{name} is not installed .*perennial\[{name}\]"):
        families.build(EstimatorParams(kind="estimator", family=name), declare(*EVERYTHING), ONE)


def test_rows_of_one_label_teach_nothing():
    """An estimator of probabilities needs two labels, and the error says what to widen."""
    fields = declare(Numeric("size"))
    rows = Labelled({"categorical": np.empty((9, 0), np.int64), "numeric": np.zeros((9, 1), np.float32)}, np.zeros(9))
    with pytest.raises(DataError, match=r"one label.*dataset.window_days"):
        fit(family("linear", fields), fields, rows, ONE)


def test_every_optional_family_is_an_extra_of_the_project():
    """What the messages name can be installed, and `make setup` does."""
    for module in families.EXTRAS:
        assert importlib.import_module(module)
