"""The rows that the dataset step chose, as a training takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pipelines.encoding import encode, texts_of
from pipelines.fields import Fields, Scale
from pipelines.text import load_tokenizer, tokenise
from pipelines.training import rows
from pipelines.training.rows import Rows


def read_columns(path: Path, fields: Fields) -> dict[str, list[Any]]:
    """The columns of the training rows in the file's order: ``id``, the fields and the label."""
    # Not polars: its threads would stay in this process, and one that has threads may not fork its ranks.
    table = pq.ParquetFile(path, pre_buffer=False).read(["id", *fields.reads, fields.label], use_threads=False)
    return {name: table[name].to_pylist() for name in table.column_names}


def as_rows(fields: Fields, columns: Mapping[str, list[Any]], scales: Mapping[str, Scale], tokenizer: Path) -> Rows:
    """The training rows, encoded as everywhere: numbers by ``scales``, texts by the file ``tokenizer``."""
    labels = np.asarray(columns[fields.label])
    target: dict[str, Any] = {"classes": len(fields.classes), "number": fields.number is not None}
    table = encode(fields, columns, scales) if fields.has_table else {}
    if fields.text is not None:
        target["tokens"] = tokenise(load_tokenizer(tokenizer), texts_of(fields, columns))
    return rows.as_rows(table, labels, columns["id"], **target)
