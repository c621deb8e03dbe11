"""A first champion of `loans` in the ledger, for tests of steps that ask no more of it than that it is there."""

from __future__ import annotations

from datetime import UTC, datetime

from pipelines import ledger
from pipelines.contracts import Order
from pipelines.settings import Settings

FIRST = datetime(2020, 5, 1, tzinfo=UTC)


def promote_first(settings: Settings) -> None:
    """Release version 1 as of ``FIRST``; nobody has made its bundle."""
    ledger.append(
        settings.ledger,
        Order(
            case="loans",
            after=0,
            champion=1,
            candidate_key="k",
            bundle=str((settings.run_dir("loans", FIRST) / "export").relative_to(settings.root)),
            action="promote",
            trigger="initial",
            reason="test",
            actor="test",
            as_of=FIRST,
        ),
    )
