"""A file as a frame. CSV is read as text, column by column: what a value is must not hang on the rows beside it."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from pipelines.errors import ConfigError, DataError

READS = {
    ".parquet": "pl.read_parquet({path})",
    ".csv": "pl.read_csv({path}, infer_schema=False)",
}
"""How source.py reads a file, by its ending; ``{path}`` is where its path stands."""


def read(path: Path) -> pl.DataFrame:
    """The rows of a Parquet or CSV file. ConfigError: it is neither, or not there; DataError: it is broken."""
    ending = path.suffix.lower()
    if ending not in READS:
        raise ConfigError(f"{path} ends with {ending or 'nothing'}: give a file that ends with {' or '.join(READS)}")
    if not path.is_file():
        raise ConfigError(f"{path} is no file: give the path of one on this machine")
    try:
        frame = pl.read_csv(path, infer_schema=False) if ending == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        said = str(error).partition("\n")[0]
        raise DataError(f"{path} cannot be read as {ending[1:]} ({said}): mend it, or save it anew") from error
    if frame.is_empty():
        raise DataError(f"{path} has no rows: give one with at least some hundred")
    return frame
