"""MLflow's aliases follow the ledger: ``champion``, ``previous``, and ``challenger`` for a candidate still undecided.

MLflow's alias call has no compare-and-set (the last writer wins), so nobody reads aliases to decide;
projecting them again repairs them.
"""

from __future__ import annotations

from pipelines import ledger
from pipelines.registry.client import KEY, connect
from pipelines.settings import Settings

ALIASES = ("champion", "previous", "challenger")


def project(settings: Settings, case: str) -> list[str]:
    """Set, move and delete the aliases of a case until they say what the ledger says; returns what was changed.

    ``previous`` is the version a rollback returns to; ``challenger`` is the newest candidate if its verdict
    is inconclusive. A retired case has none. Raises Unavailable if MLflow is down, IntegrityError if it lacks a
    version.
    """
    wanted: dict[str, int | None] = dict.fromkeys(ALIASES)
    head = ledger.head(settings.ledger, case)
    if head is not None:
        wanted["champion"] = head.champion
    below = ledger.previous_release(settings.ledger, case)
    if below is not None:
        wanted["previous"] = below.champion
    verdicts = ledger.verdicts(settings.ledger, case)
    if ledger.retirement(settings.ledger, case) is not None:
        wanted, verdicts = dict.fromkeys(ALIASES), []
    with connect(settings) as client:
        if verdicts and verdicts[-1]["verdict"]["decision"] == "inconclusive":
            found = client.search_model_versions(f"name='{case}' and tags.`{KEY}`='{verdicts[-1]['gate_key']}'")
            if found:
                wanted["challenger"] = int(found[0].version)
        present: dict[str, int] = {}
        models = client.search_registered_models(f"name='{case}'")
        if models:
            present = {alias: int(version) for alias, version in models[0].aliases.items()}
        changed = []
        for alias in ALIASES:
            version = wanted[alias]
            if present.get(alias) == version:
                continue
            if version is None:
                client.delete_registered_model_alias(case, alias)
            else:
                client.set_registered_model_alias(case, alias, str(version))
            changed.append(f"alias {alias}: {present.get(alias, 'none')} -> {version or 'none'}")
    return changed
