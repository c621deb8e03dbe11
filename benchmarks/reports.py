"""The rows that the training benchmarks train on: reports of `triage`, real where their file is found."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import CASE, MIXED, NUMBER, SIZES, TABLE, text_params
from pipelines.cases import load_fields, part
from pipelines.cases.sources import places
from pipelines.cases.triage.source import PARQUET
from pipelines.contracts import Window
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings
from pipelines.text import load_tokenizer, tokenise
from pipelines.training.rows import Rows, as_rows

MEDIAN_WORDS, WORDS_SIGMA = 36, 0.58
"""The words of a real report: log-normal with this median, and 140 at the 99th percentile."""


def reports(count: int, settings: Settings) -> tuple[list[str], NDArray[np.int64], str]:
    """Texts, labels [count] and where they are from.

    "real" ones evenly spaced over 2014-2016, or "generated" of the same lengths.
    """
    if any((folder / PARQUET).exists() for folder, _ in places(settings)):
        source = part(CASE, "source")
        params = load_params(CASE)
        span = Window(start=datetime(2014, 1, 1, tzinfo=UTC), end=datetime(2017, 1, 1, tzinfo=UTC))
        frame = source.rows(source.resolve(settings, params), span, params)
        frame = frame[np.linspace(0, frame.height - 1, count).round().astype(int).tolist()]
        fields = load_fields(CASE)
        return frame["text"].to_list(), frame[fields.label].to_numpy().astype(np.int64), "real"
    generator = np.random.default_rng(0)
    classes = load_fields(CASE).classes
    labels = generator.integers(0, len(classes), count)
    lengths = np.exp(generator.normal(np.log(MEDIAN_WORDS), WORDS_SIGMA, count)).round().clip(3, 300).astype(int)
    vocabulary = np.array(
        [
            *[
                "allows",
                "remote",
                "attackers",
                "to",
                "execute",
                "arbitrary",
                "code",
                "via",
                "crafted",
                "input",
                "in",
                "the",
                "server",
                "before",
                "version",
            ],
            *classes,
        ]
    )
    texts = [
        f"{classes[label].replace('_', ' ')} {' '.join(generator.choice(vocabulary, length))}"
        for label, length in zip(labels, lengths, strict=True)
    ]
    return texts, labels, "generated"


def numbers(count: int) -> Rows:
    """Generated rows of a table whose label is a number, far from zero for how little it varies."""
    generator = np.random.default_rng(0)
    codes, numeric = table(count, generator)
    labels = 5_000 + 30 * codes[:, 0] + 4 * numeric[:, 0] + generator.standard_t(3, count) * 10
    return as_rows({"categorical": codes, "numeric": numeric}, labels, number=True)


def table(count: int, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Codes and numbers of a generated table, as many columns of each."""
    codes = np.stack([generator.integers(0, size, count) for size in TABLE], axis=1)
    return codes, generator.normal(20, 5, codes.shape).astype(np.float32)


def rows(count: int, network: str, settings: Settings | None = None) -> tuple[Rows, str]:
    """Training rows of reports for ``network`` and where they are from.

    For a toy the ids are folded into its vocabulary; ``NUMBER`` has a generated table, ``MIXED`` one beside the texts.
    """
    if network == NUMBER:
        return numbers(count), "generated"
    texts, labels, origin = reports(count, settings or read_settings())
    found = tokenise(load_tokenizer(part(CASE, "model").tokenizer(text_params(0.0))), texts)
    if network != "minilm":
        words = SIZES["toy" if network == MIXED else network].vocabulary
        found = [[token % words for token in own] for own in found]
    if network == MIXED:
        codes, numeric = table(count, np.random.default_rng(0))
        told = (labels % 2 == 0) | (codes[:, 0] == 0)
        return as_rows({"categorical": codes, "numeric": numeric}, told.astype(np.int8), tokens=found), origin
    return as_rows({}, labels, tokens=found, classes=len(load_fields(CASE).classes)), origin
