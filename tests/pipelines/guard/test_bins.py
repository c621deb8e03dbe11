"""The bins in which arms are counted."""

from hypothesis import given
from hypothesis import strategies as st

from pipelines.arms import LATENCY_MS, latency_bin, score_bin


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_longer_latency_is_in_no_earlier_bin(one: float, other: float) -> None:
    """Bins rise with latencies, and a latency is at most its bin's end."""
    assert latency_bin(min(one, other)) <= latency_bin(max(one, other))
    assert one <= LATENCY_MS[latency_bin(one)] or latency_bin(one) == len(LATENCY_MS) - 1


def test_a_bins_end_belongs_to_it() -> None:
    """The upper end of every bin is counted in it, and what is a little longer in the next."""
    for place, end in enumerate(LATENCY_MS[:-1]):
        assert latency_bin(end) == place
        assert latency_bin(end * 1.001) == place + 1


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_probability_is_in_no_earlier_bin(one: float, other: float) -> None:
    """Bins rise with probabilities."""
    assert score_bin(min(one, other), number=False) <= score_bin(max(one, other), number=False)


@given(st.floats(-1e20, 1e20), st.floats(-1e20, 1e20))
def test_bins_of_positive_numbers_rise(one: float, other: float) -> None:
    """Of two numbers of one sign the one further from zero is in no bin nearer to zero."""
    near, far = sorted((abs(one), abs(other)))
    assert score_bin(near, number=True) <= score_bin(far, number=True)
    assert score_bin(-near, number=True) >= score_bin(-far, number=True)
