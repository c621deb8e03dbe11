"""pipelines/drift/profile/projections.py.

A text's embedding as numbers that are counted, add up, and are shown only.
"""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from pipelines import feature_names
from pipelines.drift.inputs.compare import compare
from pipelines.drift.profile import projections
from pipelines.drift.profile.counts import merge, profile_frame, to_bytes
from pipelines.drift.profile.projections import directions, project
from pipelines.drift.profile.spec import Scale
from pipelines.drift.profile.vocabulary import split
from pipelines.drift.why.diagnosis import projected
from pipelines.drift.why.embeddings import hashed
from pipelines.params_file import load_params
from tests.pipelines.drift.test_profile import TEXT_SPEC, TEXTS

NAMES = list(feature_names.projections("text"))
DIRECTIONS = [[1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0], [-1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0, -1.0]]
SPEC = replace(TEXT_SPEC, vocabulary=("heap",), scales={**TEXT_SPEC.scales, **dict.fromkeys(NAMES, Scale(0.0, 1.0))})


def texts(rows: int, words: int = 40, seed: int = 0) -> pl.DataFrame:
    """Random reports of ten of the first ``words`` words, one without a word, one missing."""
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "text": [
                *(" ".join(f"word{word}" for word in row) for row in rng.integers(0, words, (rows, 10))),
                "...",
                None,
            ]
        }
    )


def test_a_projection_is_that_of_the_hashed_words():
    """Each number is the text's hashed vector of length 1 on a direction of +1 and -1; without words there is none."""
    frame = texts(50)
    found = project(split(frame["text"]))
    assert found.head(50).to_numpy() == pytest.approx(
        hashed(frame["text"].head(50).to_list()) @ directions(), abs=1e-12
    )
    assert found.tail(2).null_count().row(0) == (2,) * len(NAMES)
    assert set(np.unique(directions())) == {-1.0, 1.0}
    # Frozen for ever: other directions would make profiles of two days incomparable.
    assert directions()[:2].tolist() == DIRECTIONS


def test_a_text_has_the_same_numbers_in_any_company(monkeypatch):
    """Alone, in small parts or with all others a text's projections are the same bits.

    Profiles of parts add up to the whole.
    """
    words = split(texts(60)["text"])
    whole = project(words)
    monkeypatch.setattr(projections, "_AT_ONCE", 7)
    assert project(words).equals(whole)
    assert pl.concat([project(words[at : at + 1]) for at in range(words.len())]).equals(whole)
    frame = texts(60)
    parts = [profile_frame(part, TEXTS, SPEC) for part in frame.iter_slices(25)]
    assert to_bytes(merge(parts, "texts")) == to_bytes(profile_frame(frame, TEXTS, SPEC))


def test_projections_show_what_moved_and_decide_nothing():
    """Texts of other words move the KL far above its threshold, texts of the same hardly.

    What takes part in the test is what it is without them.
    """
    params = load_params("triage").drift
    before, same, other = (
        profile_frame(frame, TEXTS, SPEC)
        for frame in (texts(900), texts(900, seed=1), pl.DataFrame({"text": ["heap overflow in word1"] * 900}))
    )
    quiet, moved = (compare(before, now, TEXTS, SPEC, params) for now in (same, other))
    assert projected(quiet).most < 0.05 < projected(quiet).threshold < projected(moved).kl
    shown = [feature for feature in moved if feature.feature in NAMES]
    assert len(shown) == len(NAMES)
    assert all(feature.ignored and not feature.drifted for feature in shown)
    bare = [
        replace(one, columns={name: column for name, column in one.columns.items() if name not in NAMES})
        for one in (before, other)
    ]
    assert [feature for feature in moved if feature not in shown] == list(compare(*bare, TEXTS, SPEC, params))
    assert projected(compare(*bare, TEXTS, SPEC, params)) is None
