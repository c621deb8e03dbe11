"""MLflow's aliases follow the ledger: ``champion``, ``previous``, and ``challenger`` on trial or undecided.

MLflow's alias call has no compare-and-set (the last writer wins), so nobody reads aliases to decide;
projecting them again repairs them. What we set last stands in a tag of the registered model: where an alias says
something else, a person or another program has moved it. That is noted in the tag before it is repaired, and stays
there until people were told (:func:`untold`, :func:`told`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pipelines import ledger
from pipelines.registry.client import KEY, connect
from pipelines.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

ALIASES = ("champion", "previous", "challenger")
TAG = "perennial.aliases"
"""Tag of a registered model: what we know of its aliases."""

Versions = Mapping[str, int | None]
"""By alias the version that it names; None: it is not there."""


@dataclass(frozen=True)
class Move:
    """An alias that somebody else moved: the ``number``-th time, from what we had set to what was ``found``."""

    number: int
    alias: str
    was: int | None
    found: int | None


@dataclass(frozen=True)
class _Known:
    """What the tag says.

    ``ours`` are the versions that an alias can have by us: the last one that was set, and while it is being set the one
    before. An alias that it does not name was set before there was such a tag.
    """

    ours: Mapping[str, list[int | None]]
    moves: int = 0
    untold: tuple[Move, ...] = ()


def project(settings: Settings, case: str) -> list[str]:
    """Set, move and delete the aliases of a case until they say what the ledger says; returns what was changed.

    ``previous`` is the version a rollback returns to; ``challenger`` is the version on trial in a rollout, else the
    newest candidate if its verdict is inconclusive. A retired case has none. Raises Unavailable if MLflow is down,
    IntegrityError if it lacks a version.
    """
    with connect(settings) as client:
        wanted = _wanted(settings, client, case)
        found = _registered(client, case)
        said = {} if found is None else found.aliases
        present = {alias: int(said[alias]) if alias in said else None for alias in ALIASES}
        known = _Known({}) if found is None else _read(found)
        behind = [alias for alias in ALIASES if present[alias] != wanted[alias]]
        noted = _noted(known, present, behind)
        if behind:
            # Before the aliases: a process that dies in between has moved none that would look like a person's.
            both = {alias: [*noted.ours.get(alias, []), present[alias], wanted[alias]] for alias in behind}
            noted = replace(noted, ours={**noted.ours, **both})
            _write(client, case, noted)
        for alias in behind:
            version = wanted[alias]
            if version is None:
                client.delete_registered_model_alias(case, alias)
            else:
                client.set_registered_model_alias(case, alias, str(version))
        settled = replace(noted, ours={alias: [wanted[alias]] for alias in ALIASES})
        if found is not None and settled != known:
            _write(client, case, settled)
    return [f"alias {alias}: {present[alias] or 'none'} -> {wanted[alias] or 'none'}" for alias in behind]


def untold(settings: Settings, case: str) -> tuple[Move, ...]:
    """What others moved and nobody was told of yet, oldest first. Raises as :func:`project` does."""
    with connect(settings) as client:
        found = _registered(client, case)
    return () if found is None else _read(found).untold


def told(settings: Settings, case: str, numbers: Collection[int]) -> None:
    """Forget the moves of these numbers, as people know of them. Raises as :func:`project` does."""
    with connect(settings) as client:
        found = _registered(client, case)
        if found is not None:
            known = _read(found)
            left = tuple(move for move in known.untold if move.number not in numbers)
            _write(client, case, replace(known, untold=left))


def _wanted(settings: Settings, client: MlflowClient, case: str) -> Versions:
    """What the ledger says."""
    wanted: dict[str, int | None] = dict.fromkeys(ALIASES)
    if ledger.retirement(settings.ledger, case) is not None:
        return wanted
    head = ledger.head(settings.ledger, case)
    if head is not None:
        wanted["champion"], wanted["challenger"] = head.champion, head.challenger
    below = ledger.previous_release(settings.ledger, case)
    if below is not None:
        wanted["previous"] = below.champion
    verdicts = ledger.verdicts(settings.ledger, case)
    if wanted["challenger"] is None and verdicts and verdicts[-1]["verdict"]["decision"] == "inconclusive":
        found = client.search_model_versions(f"name='{case}' and tags.`{KEY}`='{verdicts[-1]['gate_key']}'")
        if found:
            wanted["challenger"] = int(found[0].version)
    return wanted


def _noted(known: _Known, present: Versions, behind: Collection[str]) -> _Known:
    """What is known with the moves that others made since."""
    strange = [alias for alias in behind if alias in known.ours and present[alias] not in known.ours[alias]]
    moves = tuple(
        Move(known.moves + place, alias, known.ours[alias][-1], present[alias])
        for place, alias in enumerate(strange, start=1)
    )
    return replace(known, moves=known.moves + len(moves), untold=(*known.untold, *moves))


def _registered(client: MlflowClient, case: str) -> RegisteredModel | None:
    """The case's registered model; None before its first version."""
    return next(iter(client.search_registered_models(f"name='{case}'")), None)


def _read(found: RegisteredModel) -> _Known:
    """What the tag says; nothing is known where there is none, or one that somebody has written."""
    try:
        said: dict[str, Any] = json.loads(found.tags.get(TAG, "{}"))
        moves = tuple(Move(**move) for move in said.get("untold", ()))
        return _Known({alias: list(said["ours"][alias]) for alias in said.get("ours", {})}, said.get("moves", 0), moves)
    except (AttributeError, TypeError, ValueError):
        return _Known({})


def _write(client: MlflowClient, case: str, known: _Known) -> None:
    client.set_registered_model_tag(case, TAG, json.dumps(asdict(known)))
