"""pipelines/drift/why/embeddings.py: against sums written out, scipy, and samples that did and did not move."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from pipelines.drift.why import embeddings

REPEATS = 60


def test_mmd_is_the_sum_of_the_paper():
    """The value is equation 3 of Gretton et al., written out with loops, and the two samples may change places."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 3))
    y = rng.normal(0.5, 1.0, size=(5, 3))
    pooled = np.concatenate([x, y])
    scale = np.median([np.sum((pooled[i] - pooled[j]) ** 2) for i in range(12) for j in range(i)])

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.sum((a - b) ** 2) / (2 * scale)))

    expected = (
        sum(kernel(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / (7 * 6)
        + sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / (5 * 4)
        - 2 * sum(kernel(a, b) for a in x for b in y) / (7 * 5)
    )
    assert embeddings.mmd(x, y)[0] == pytest.approx(expected)
    assert embeddings.mmd(y, x)[0] == pytest.approx(expected)
    assert embeddings.mmd(x[:1], y) == (0.0, 1.0)


def test_mmd_is_seldom_significant_without_a_shift_and_always_with_one():
    """Over 60 pairs of equal samples the p-values are uniform.

    A shift by half a deviation has the smallest p there is.
    """
    rng = np.random.default_rng(1)
    quiet = [
        embeddings.mmd(rng.normal(size=(40, 6)), rng.normal(size=(30, 6)), permutations=99, seed=seed)[1]
        for seed in range(REPEATS)
    ]
    assert scipy_stats.kstest(quiet, "uniform").pvalue > 0.01
    assert embeddings.mmd(rng.normal(size=(100, 6)), rng.normal(0.5, 1.0, size=(100, 6)), permutations=99)[1] == 0.01


def test_mmd_sees_what_the_means_do_not():
    """Samples with one mean and another spread have parallel centroids or none, and are told apart."""
    rng = np.random.default_rng(2)
    assert embeddings.mmd(rng.normal(size=(150, 4)), rng.normal(0.0, 1.6, size=(150, 4)), permutations=99)[1] == 0.01


def test_projection_kl_is_scipys_entropy():
    """In one dimension it is the Kullback-Leibler divergence of the counts between the reference's quantiles.

    The direction does not matter.
    """
    rng = np.random.default_rng(3)
    x = rng.normal(size=(4000, 1))
    y = rng.normal(0.7, 1.0, size=(3000, 1))
    edges = np.concatenate([[-np.inf], np.quantile(x, np.arange(1, 10) / 10), [np.inf]])
    p, q = ((np.histogram(values, edges)[0] + 0.5) / (len(values) + 5) for values in (x, y))
    assert embeddings.projection_kl(x, y) == pytest.approx(scipy_stats.entropy(q, p), abs=0.02)
    assert embeddings.projection_kl(x, x) == pytest.approx(0.0, abs=1e-12)
    assert embeddings.projection_kl(x, x[:0]) == 0.0


def test_the_threshold_lies_between_noise_and_a_shift():
    """Samples of 500 vectors without a shift stay far below KL_THRESHOLD.

    A shift by one deviation in every direction is far above.
    """
    rng = np.random.default_rng(4)
    x = rng.normal(size=(500, 64))
    same = rng.normal(size=(500, 64))
    moved = rng.normal(1.0, 1.0, size=(500, 64))
    assert embeddings.projection_kl(x, same) < 0.3 * embeddings.KL_THRESHOLD
    assert embeddings.projection_kl(x, moved) > 2 * embeddings.KL_THRESHOLD


def test_centroids():
    """The cosine is that of the means: opposite samples give -1, a sample without direction 1."""
    x = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert embeddings.centroid_cosine(x, -x) == pytest.approx(-1.0)
    assert embeddings.centroid_cosine(x, np.array([[2.0, 0.0]])) == pytest.approx(np.sqrt(0.5))
    assert embeddings.centroid_cosine(x, np.zeros((3, 2))) == 1.0


def test_hashed_texts_depend_on_their_words_alone():
    """Order, case and punctuation make no difference, other words do, and a text without words is zero."""
    vectors = embeddings.hashed(
        ["Buffer overflow, in libpng", "in LIBPNG: overflow buffer", "cross-site scripting", "?!"]
    )
    assert np.allclose(vectors[0], vectors[1])
    assert abs(vectors[0] @ vectors[2]) < 0.5
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1, 1, 0])
