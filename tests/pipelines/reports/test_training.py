"""The figures of a training and its judgement."""

import numpy as np
import pytest
from matplotlib.image import imread

from pipelines.reports import training


def _lines(count, **more):
    return [
        {"step": s, "loss": 1 / s, "lr": 0.1, "grad_norm": 1.0 + s % 3, "samples": 8 * s, "seconds": 0.1 * s} | more
        for s in range(1, count + 1)
    ]


def _colours(path, colour):
    """How many pixels are of this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return int((np.abs(imread(path)[..., :3] - wanted).max(axis=2) < 0.02).sum())


def test_validation_is_drawn_over_training(tmp_path):
    """With validations there is a second curve in its own colour, without there is none.

    Equal lines give equal bytes.
    """
    plain = training.curves(_lines(100), "bank", tmp_path / "a.png")
    both = training.curves(
        [*_lines(100), {"step": 50, "validation_loss": 0.4}, {"step": 100, "validation_loss": 0.3}],
        "bank",
        tmp_path / "b.png",
    )
    again = training.curves(_lines(100), "bank", tmp_path / "c.png")
    assert _colours(plain, training.SECOND) == 0 < _colours(both, training.SECOND)
    assert plain.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("lines", [_lines(1), _lines(100, grad_norm=None), _lines(100, seconds=1.0)])
def test_what_was_not_measured_is_said(tmp_path, lines):
    """A single step, no gradient norm or no time between steps leave a figure whose other parts are drawn."""
    figure = training.curves(lines, "bank", tmp_path / "a.png")
    assert _colours(figure, training.INK) > 100


def test_a_confusion_is_shaded_by_its_rows(tmp_path):
    """What a class is mostly taken for is darkest in its row, however few rows it has."""
    path = training.confusion([[1, 0], [900, 100]], ["rare", "common"], "triage", tmp_path / "a.png")
    pixels = imread(path)[..., :3].sum(axis=2)
    middle = pixels.shape[0] // 3
    assert pixels[middle].min() < 1.2


def test_a_confusion_of_many_classes_is_a_picture_of_shades(tmp_path):
    """A thousand classes, as many as there may be, are drawn in a figure of the usual size."""
    names = [f"class {number}" for number in range(1000)]
    path = training.confusion(np.eye(1000, dtype=int).tolist(), names, "codes", tmp_path / "a.png")
    pixels = imread(path)[..., :3]
    assert max(pixels.shape) < 2000
    assert pixels.sum(axis=2).min() < 1.2


def test_numbers_are_drawn_beside_their_labels(tmp_path):
    """Predicted numbers have a line of what came and a histogram of errors, also where all are equal."""
    path = training.numbers([1.0, 2.0, 9.0], [1.5, 2.0, 8.0], "min", "trips", tmp_path / "a.png")
    assert _colours(path, training.LINE) > 500
    assert _colours(training.numbers([2.0] * 3, [2.0] * 3, "min", "trips", tmp_path / "b.png"), training.LINE) > 0


def test_a_calibration_needs_no_spread(tmp_path):
    """Equal scores, and fewer rows than bins, are drawn too."""
    assert _colours(training.calibration([0, 1, 0], [0.1, 0.1, 0.1], "bank", tmp_path / "a.png"), training.LINE) > 0


def test_throughput_is_that_of_all_steps():
    """Steps of unequal speed have the throughput of their time together, not the mean of their rates.

    Where no time passed there is none.
    """
    uneven = [
        {"samples": 0, "seconds": 0.0},
        {"samples": 10, "seconds": 0.1},
        {"samples": 20, "seconds": 1.0},
        {"samples": 30, "seconds": 1.1},
    ]
    assert training._speeds(uneven, 2) == pytest.approx([20.0, 20.0])
    assert np.isnan(training._speeds([{"samples": 0, "seconds": 1.0}, {"samples": 8, "seconds": 1.0}], 1)).all()
