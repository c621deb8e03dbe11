"""pipelines/drift/inputs/change.py and mixture.py: since when, and whether other shares of the classes explain it."""

import numpy as np

from pipelines.drift.inputs.change import change_gains, coarse, outside
from pipelines.drift.profile.counts import Column
from pipelines.drift.why.mixture import explain
from tests.pipelines.drift.stream import PARAMS

BEFORE = np.array([4000, 4000, 2000])
OLD = [0.4, 0.4, 0.2]
NEW = [0.25, 0.4, 0.35]
CLASSES = {
    "a": np.array([[400, 100], [100, 400]]),
    "b": np.array([[250, 250], [250, 250]]),
    "c": np.array([[450, 50], [200, 300]]),
}


def drawn(rows: int, shares: dict[str, list[float]], seed: int = 0) -> dict[str, np.ndarray]:
    """Counts of each feature at the given shares of its groups."""
    rng = np.random.default_rng(seed)
    return {name: rng.multinomial(rows, share) for name, share in shares.items()}


def test_the_day_of_the_change_is_found():
    """In 100 streams of twelve days the day on which one in seven values moved is named to the day in at least 95."""
    found = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        days = np.stack([rng.multinomial(400, OLD if day < 8 else NEW) for day in range(12)])
        found.append(int(change_gains(BEFORE, days).argmax()) == 8)
    assert sum(found) >= 95


def test_a_change_before_the_first_day_is_its_first():
    """Where every day is another distribution than the reference, the change is the first day that is looked at."""
    days = np.stack([np.random.default_rng(day).multinomial(400, NEW) for day in range(6)])
    assert change_gains(BEFORE, days).argmax() == 0
    assert outside(BEFORE, days, 1.0, 0.01, 0.01).all()
    # Days that resemble each other less than their rows would allow prove less.
    assert not outside(BEFORE, days, 50.0, 0.01, 0.01).any()


def test_new_values_are_a_group_of_their_own():
    """Values and categories that the reference never had are counted.

    The reference's own groups stay what they were.
    """
    number = Column(np.array([10, 20, 30]), np.array([5, 5, 5]))
    own, days, into = coarse(number, [Column(np.array([20, 99]), np.array([3, 4]))], 10)
    assert (own.tolist(), days.tolist(), into.tolist()) == ([5, 5, 5, 0], [[0, 3, 0, 4]], [0, 1, 2])
    word = Column(np.array([0, 2]), np.array([6, 4]), vocabulary=("x", "y", "z"))
    own, days, into = coarse(word, [Column(np.array([1]), np.array([7]), vocabulary=("x", "y", "z"))], 10)
    assert (own.tolist(), days.tolist(), into.tolist()) == ([6, 0, 4], [[0, 7, 0]], [0, 2])


def test_other_shares_explain_label_shift():
    """Features drawn from the classes at 20 to 80 are explained, and the shares are found."""
    mixed = {name: (0.2 * table[0] + 0.8 * table[1]) / 500 for name, table in CLASSES.items()}
    found = explain(CLASSES, drawn(2000, mixed), {}, PARAMS.drift)
    assert found.explains
    assert found.unexplained == ()
    assert abs(found.shares[1] - 0.8) < 0.05


def test_other_shares_do_not_explain_covariate_shift():
    """A feature that both classes share alike cannot move by their shares: it is named."""
    found = explain(CLASSES, drawn(2000, {"a": [0.5, 0.5], "b": [0.8, 0.2], "c": [0.65, 0.35]}), {}, PARAMS.drift)
    assert not found.explains
    assert found.unexplained == ("b",)


def test_shares_of_many_classes_are_not_told_from_one_feature():
    """With more classes than groups anything could be explained, and so nothing is said.

    Nor is it without features or rows of a class.
    """
    many = {"a": np.full((9, 4), 50)}
    assert explain(many, {"a": np.array([10, 20, 30, 40])}, {}, PARAMS.drift) is None
    assert explain({}, {}, {}, PARAMS.drift) is None
    assert explain({"a": np.array([[9, 9, 9], [0, 0, 0]])}, {"a": np.array([1, 2, 3])}, {}, PARAMS.drift) is None
