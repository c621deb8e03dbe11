"""Lines of metrics.jsonl as points of curves."""

import json
from math import nan

from pipelines.registry.points import Curves, Point, Tail, place_of


def _line(step, **more):
    return {"step": step, "loss": 0.5, "lr": 0.1, "grad_norm": None, "samples": 10 * step, "seconds": 0.5 * step} | more


def test_a_line_becomes_points():
    """Loss and learning rate are points at their step's time; no number is no point; throughput is over a second."""
    found = list(Curves().points([_line(1, grad_norm=nan), _line(2, grad_norm=3.0)]))
    assert found == [
        Point("train.loss", 0.5, 1, 0.5),
        Point("train.learning_rate", 0.1, 1, 0.5),
        Point("train.loss", 0.5, 2, 1.0),
        Point("train.learning_rate", 0.1, 2, 1.0),
        Point("train.gradient_norm", 3.0, 2, 1.0),
        Point("train.samples_per_second", 20.0, 2, 1.0),
    ]


def test_a_validation_comes_after_its_step():
    """A validation has the time of its step's line, and stands after it in the order."""
    curves, validation = Curves(), {"step": 1, "epoch": 0, "validation_loss": 0.7}
    assert [point for point in curves.points([_line(1), validation]) if point.name == "validation.loss"] == [
        Point("validation.loss", 0.7, 1, 0.5)
    ]
    assert place_of(_line(1)) < place_of(validation) < place_of(_line(2))


def _write(path, lines, end=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end)


def test_a_tail_reads_what_is_new(tmp_path):
    """Each look gives whole lines once; half a line waits for its end, and a file that is not there yet has none."""
    tail = Tail(tmp_path / "metrics.jsonl")
    assert tail.look() == []
    _write(tail.path, [_line(1)], end='{"step": 2, "lo')
    assert [line["step"] for line in tail.look()] == [1]
    _write(tail.path, [_line(1), _line(2)])
    assert [line["step"] for line in tail.look()] == [2]
    assert tail.look() == []


def test_a_file_that_was_cut_back_is_read_anew(tmp_path):
    """A training that goes on at a checkpoint rewrites the file's end: nothing is read at a wrong place."""
    tail = Tail(tmp_path / "metrics.jsonl")
    _write(tail.path, [_line(1), _line(2), _line(3)])
    tail.look()
    _write(tail.path, [_line(1), _line(2, seconds=7.25), _line(3, seconds=8.125), _line(4)])
    assert [line["step"] for line in tail.look()] == [1, 2, 3, 4]
