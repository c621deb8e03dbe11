"""Verdicts: what the gate said of every candidate, for good."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    String,
    Table,
    Text,
)

from pipelines.contracts import Trigger
from pipelines.errors import ConflictError, IntegrityError
from pipelines.ledger.rows import LOOK, insert_first, metadata, moment_text, read_rows
from pipelines.storage import canonical_json, digest

_verdicts = Table(
    "verdicts",
    metadata,
    Column("case", String(64), primary_key=True),
    Column("gate_key", String(64), primary_key=True),
    Column("as_of", String(40), nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("verdict", Text, nullable=False),
    Column("recorded_at", String(40), nullable=False),
)


def record_verdict(url: str, *, case: str, gate_key: str, as_of: datetime, trigger: Trigger, verdict: Any) -> str:
    """Keep the verdict of one gate run (``gate_key``: its manifest's key) for good; returns its sha256.

    The same verdict again changes nothing. Raises ConflictError if the same gate run answered differently before:
    verdicts are immutable.
    """
    text = canonical_json(verdict)
    value = digest(verdict)
    if not insert_first(
        url,
        _verdicts,
        case=case,
        gate_key=gate_key,
        as_of=moment_text(as_of),
        trigger=trigger,
        hash=value,
        verdict=text,
    ):
        [row] = read_rows(url, _verdicts, case, named={"gate_key": gate_key})
        if (found := row["hash"]) != value:
            raise ConflictError(
                f"{case}: gate run {gate_key[:12]} already has verdict {found[:12]}, not {value[:12]}: "
                "verdicts are immutable"
            )
    return value


def verdicts(url: str, case: str) -> list[dict[str, Any]]:
    """All verdicts of a case by as_of: ``{gate_key, as_of, trigger, hash, verdict, recorded_at}``."""
    return read_rows(url, _verdicts, case, order=(_verdicts.c.as_of, _verdicts.c.recorded_at), parse=["verdict"])


def verdict(url: str, case: str, value: str, *, gate_key: str = "") -> dict[str, Any]:
    """The verdict whose sha256 is ``value``, as :func:`verdicts` gives it.

    Several gate runs may come to the same verdict, to the byte: it is the row of ``gate_key`` where that run is one of
    them.

    Raises IntegrityError if the ledger has none, or its row is another one than was hashed.
    """
    rows = read_rows(
        url,
        _verdicts,
        case,
        order=[_verdicts.c.gate_key != gate_key],
        limit=1,
        parse=["verdict"],
        named={"hash": value},
    )
    if not rows:
        raise IntegrityError(f"ledger of {case}: there is no verdict {value[:12]}: {LOOK}")
    if digest(rows[0]["verdict"]) != value:
        raise IntegrityError(
            f"ledger of {case}: table verdicts, gate_key {rows[0]['gate_key']}: column verdict is not what its hash "
            f"was made of: {LOOK}"
        )
    return rows[0]
