"""Rows in memory, and the order in which a training sees them."""

import numpy as np
import pytest
import torch

from pipelines.text import pad
from pipelines.training.rows import as_rows, batches, load_rows, micro_batches, order, train_validation_split
from tests.pipelines.training.models import table, texts


def test_order_is_a_function_of_seed_and_epoch():
    """Every epoch visits every row once, in an order that (seed, epoch) fixes and no generator's state can change."""
    torch.manual_seed(1)
    first = order(100, seed=0, epoch=1)
    torch.rand(10)
    assert torch.equal(first, order(100, seed=0, epoch=1))
    assert not torch.equal(first, order(100, seed=0, epoch=2))
    assert not torch.equal(first, order(100, seed=1, epoch=1))
    assert torch.equal(first.sort().values, torch.arange(100))


def test_texts_are_padded_as_in_serving():
    """A batch of texts has the tensors that pipelines.text.pad makes of the same ids: up to its own longest row."""
    rows = as_rows({}, np.array([0, 2, 1]), tokens=[[5, 6, 7], [8], [9, 10]], classes=3)
    batch = rows.batch(torch.tensor([1, 2]))
    expected = pad([[8], [9, 10]])
    assert set(batch) == set(expected)
    assert all(
        np.array_equal(batch[name].numpy(), expected[name]) and batch[name].dtype == torch.int64 for name in expected
    )
    assert rows.labels.dtype == torch.int64
    assert rows.ids == ["0", "1", "2"]


def test_pools_are_sorted_by_length():
    """With pools, batches need far less padding; every row still comes once, in an order that (seed, epoch) fixes."""
    rows = texts(200)
    lengths = rows.lengths
    sorted_ones, plain_ones = batches(rows, 16, 64, seed=3, epoch=0), batches(rows, 16, 0, seed=3, epoch=0)
    assert torch.cat(sorted_ones).sort().values.tolist() == list(range(200))
    assert len(sorted_ones) == len(plain_ones) == 13

    def padded(cut):
        return sum(len(batch) * int(lengths[batch].max()) for batch in cut)

    assert padded(sorted_ones) < 1.25 * int(lengths.sum()) < padded(plain_ones)
    assert [int(lengths[batch].max()) for batch in sorted_ones] != sorted(
        int(lengths[batch].max()) for batch in sorted_ones
    )
    assert all(torch.equal(a, b) for a, b in zip(sorted_ones, batches(rows, 16, 64, seed=3, epoch=0), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(sorted_ones, batches(rows, 16, 64, seed=3, epoch=1), strict=True))


def test_ranks_share_a_batch_evenly():
    """The micro-batches of all ranks are the batch, as many on each rank, and of about the same lengths."""
    rows = texts(200)
    batch = max(batches(rows, 16, 64, seed=3, epoch=0), key=lambda batch: int(rows.lengths[batch].sum()))
    parts = [micro_batches(batch, rank, 2, 4) for rank in range(2)]
    assert [len(own) for own in parts] == [4, 4]
    assert sorted(torch.cat([micro for own in parts for micro in own]).tolist()) == sorted(batch.tolist())
    tokens = [sum(int(rows.lengths[micro].sum()) for micro in own) for own in parts]
    assert abs(tokens[0] - tokens[1]) <= int(rows.lengths.max())
    assert [len(micro) for micro in micro_batches(torch.tensor([7]), 1, 2, 2)] == [0, 0]


@pytest.mark.parametrize("rows", [texts(20), table(20)], ids=["texts", "table"])
def test_rows_come_back_from_disk(rows, tmp_path):
    """Saved rows are the same rows when they are loaded: names, labels and the tensors of any batch."""
    rows.save(tmp_path / "rows.pt")
    again, index = load_rows(tmp_path / "rows.pt"), torch.tensor([3, 0, 17])
    assert again.ids == rows.ids
    assert torch.equal(again.labels, rows.labels)
    assert all(torch.equal(tensor, again.batch(index)[name]) for name, tensor in rows.batch(index).items())


def test_the_newest_rows_validate():
    """The newest share of the rows validates, at least one row, and none of it is trained on."""
    rows = texts(50)
    old, new = train_validation_split(rows, 0.1)
    assert (list(old.ids), list(new.ids)) == (rows.ids[:45], rows.ids[45:])
    assert torch.equal(new.batch(torch.tensor([0]))["input_ids"], rows.batch(torch.tensor([45]))["input_ids"])
    assert len(train_validation_split(rows, 0.001)[1]) == 1
    assert train_validation_split(rows, 0.0) == (rows, None)
