"""Which layer of two trainings differs first, and by what."""

import pytest

from pipelines.reproduction.layers import LAYERS, Training, differences, first_other_step

BASE = {
    "code": {"commit": "c1", "dirty": False, "source": {"train": "s1", "loop": "s2"}},
    "data": {"files": {"train.parquet": "d1"}},
    "environment": {"lock": "l1", "cpu": {"model": "m", "capability": "AVX2"}},
    "execution": {"ranks": 2},
    "evaluation": {"log_loss": 0.25},
}
CURVE = ((1, 0.7), (2, 0.6), (3, 0.5))


def made(curve=CURVE, **layers) -> Training:
    """The base training with some layers replaced."""
    return Training({**BASE, **layers}, "w", curve)


def test_equal_trainings_have_no_differences():
    """Nothing is named where nothing differs."""
    assert differences(made(), made()) == {}


@pytest.mark.parametrize(
    ("layer", "changed", "what"),
    [
        ("code", {"commit": "c1", "dirty": False, "source": {"train": "s1", "loop": "other"}}, "source.loop"),
        ("data", {"files": {"train.parquet": "other"}}, "files.train.parquet"),
        ("environment", {"lock": "l1", "cpu": {"model": "m", "capability": "AVX512"}}, "cpu.capability"),
        ("execution", {"ranks": 1}, "ranks"),
        ("evaluation", {"log_loss": 0.26}, "log_loss"),
    ],
)
def test_each_layer_is_named_with_what_differs(layer, changed, what):
    """One changed value is found in its layer, with both values."""
    found = differences(made(), made(**{layer: changed}))
    assert list(found) == [layer]
    (row,) = found[layer]
    assert row["what"] == what
    assert row["recorded"] != row["found"]


def test_layers_come_in_the_order_of_cause():
    """If all differ, code is named first and evaluation last."""
    changed = {layer: {"other": True} for layer in LAYERS}
    assert tuple(differences(made(), made(**changed))) == LAYERS


def test_another_commit_of_the_same_source_is_no_difference():
    """Where sources are recorded they decide: a commit that changed something else cannot have changed the weights."""
    moved = {**BASE["code"], "commit": "c2", "dirty": True}
    assert differences(made(), made(code=moved)) == {}
    without = {"commit": "c1", "dirty": False}
    found = differences(made(code=without), made(code={**without, "commit": "c2"}))
    assert [row["what"] for row in found["code"]] == ["commit"]


def test_what_an_older_record_does_not_name_is_no_difference():
    """Sources that only a later version records are not taken for changed code; one that is recorded and gone is."""
    more = {**BASE["code"], "case": "k", "source": {**BASE["code"]["source"], "shared": "s3"}}
    assert differences(made(), made(code=more)) == {}
    assert [row["what"] for row in differences(made(code=more), made())["code"]] == ["case", "source.shared"]


def test_a_value_that_only_one_side_has_differs():
    """A key that was not recorded, or is no longer there, is a difference to nothing."""
    found = differences(made(execution={}), made(execution={"ranks": 2}))
    assert found["execution"] == [{"what": "ranks", "recorded": None, "found": 2}]


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        (CURVE, []),
        (((1, 0.7), (2, 0.6000000000000001), (3, 0.4)), [("loss at step 2", 0.6, 0.6000000000000001)]),
        (CURVE[:2], [("loss at step 3", 0.5, None)]),
        ((*CURVE, (4, 0.4)), [("loss at step 4", None, 0.4)]),
    ],
)
def test_the_first_other_step_is_named(curve, expected):
    """Curves are compared bit by bit, and only the first step that differs is told."""
    assert [(row["what"], row["recorded"], row["found"]) for row in first_other_step(CURVE, curve)] == expected


def test_the_loss_curve_is_part_of_the_execution():
    """The same settings with another curve differ in their execution."""
    assert list(differences(made(), made(curve=CURVE[:1]))) == ["execution"]
