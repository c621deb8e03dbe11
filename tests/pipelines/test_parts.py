"""How a request's rows become inferences, and where that is computed."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.parts import MAX_BATCH, MAX_TOKENS, STEP, cut
from pipelines.text import pad
from serving.gateway.versions import INLINE_CHARACTERS, Version


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60))
def test_every_text_comes_once_with_its_own_tokens(lengths):
    """Each row is in one part, its tokens in front and zeros behind.

    A part is as wide as a bucket, never wider than the truncation, and not too large.
    """
    rows = [list(range(1, length + 1)) for length in lengths]
    parts = cut(pad(rows), longest=100)
    assert sorted(place for part in parts for place in part.rows) == list(range(len(rows)))
    for part in parts:
        ids = part.tensors["input_ids"]
        mask = part.tensors["attention_mask"]
        width = ids.shape[1]
        assert width % STEP == 0 or width == 100
        assert ids.size <= MAX_TOKENS
        for place, own, there in zip(part.rows, ids, mask, strict=True):
            assert width - STEP < lengths[place] <= width
            assert own.tolist() == rows[place] + [0] * (width - lengths[place])
            assert there.tolist() == [1] * lengths[place] + [0] * (width - lengths[place])


def test_dense_rows_keep_their_order():
    """Dense tensors are cut into pieces of MAX_BATCH rows, the last one shorter.

    They are handed on as they are if they fit.
    """
    tensors = {"numeric": np.arange(2 * MAX_BATCH + 2, dtype=np.float32).reshape(-1, 1)}
    parts = cut(tensors)
    assert [len(part.tensors["numeric"]) for part in parts] == [MAX_BATCH, MAX_BATCH, 2]
    np.testing.assert_array_equal(
        np.concatenate([tensors["numeric"][list(part.rows)] for part in parts]), tensors["numeric"]
    )
    small = {"numeric": tensors["numeric"][:3]}
    assert cut(small)[0].tensors is small


def test_much_text_is_encoded_beside_the_event_loop():
    """A short text is encoded on the spot, a long one (or many) in another thread, so that the loop goes on."""
    threads = []

    def encode(columns):
        threads.append(threading.current_thread())
        return pad([[1] for _ in columns["text"]])

    version = Version(1, encode, "text", 8)
    for texts in (["short"], ["x" * (INLINE_CHARACTERS + 1)], ["x" * 100] * 100):
        asyncio.run(version.parts({"text": texts}))
    assert [thread is threading.main_thread() for thread in threads] == [True, False, False]
