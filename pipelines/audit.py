"""Is what the ledger says what was written into it?

The journal, every hash, every reference, and the files that releases go by. Changed, removed and added rows of any
table are found (journal.py). Inside of the database alone nobody can tell a journal that was recomputed as a whole, or
cut off at its newest end, from a true one; the manifests of the runs, which lie outside, still give such an edit away
where it touches what they name: a verdict, a promotion, an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pipelines import ledger, storage
from pipelines.contracts import CHANGES, Finding, Manifest, Release
from pipelines.errors import PerennialError
from pipelines.settings import Settings
from pipelines.storage import MANIFEST, digest

Rows = Mapping[Any, Any]


def audit(settings: Settings, case: str | None = None) -> dict[str, Any]:
    """``{"ok", "cases", "findings"}`` of one case, or of all.

    ``cases`` are ``{case, releases, verdicts, rows, taken_over}``, ``findings`` are Findings as plain data.
    ``taken_over`` counts rows from before the ledger kept a journal: what happened to them earlier is not known. Raises
    Unavailable if the ledger does not answer; whatever else is wrong is a finding.
    """
    found: list[Finding] = []
    checked = []
    runs = settings.root / "artefacts"
    known = (
        [case]
        if case
        else sorted({*ledger.cases(settings.ledger), *(path.name for path in runs.glob("[!.]*") if path.is_dir())})
    )
    for name in known:
        # The manifests first: what they name was written before.
        manifests = list(_manifests(runs / name))
        rows, wrong, taken_over = ledger.stored(settings.ledger, name)
        found += wrong
        found += within(name, rows)
        found += _runs(name, rows, manifests)
        found += _bundles(settings, name, rows)
        counts = {table: len(rows[table]) for table in ("releases", "verdicts")}
        checked.append({"case": name, **counts, "rows": sum(map(len, rows.values())), "taken_over": taken_over})
    return {"ok": not found, "cases": checked, "findings": [one.model_dump(mode="json") for one in found]}


def within(case: str, rows: Mapping[str, Iterable[Rows]]) -> Iterator[Finding]:
    """What is wrong between and in the rows of a case, as :func:`pipelines.ledger.stored` gives them.

    Hashes, chain, references.
    """
    verdicts: dict[str, Any] = {}
    for row in rows["verdicts"]:
        wrong = partial(Finding, case=case, table="verdicts", row=f"gate_key {row['gate_key']}")
        try:
            value = json.loads(row["verdict"])
        except (TypeError, ValueError, RecursionError) as error:
            yield wrong(column="verdict", problem=f"cannot be read: {error}")
            continue
        if digest(value) != row["hash"]:
            yield wrong(column="hash", problem="is not the sha256 of the verdict")
        verdicts[row["hash"]] = value
    yield from _releases(case, rows["releases"], verdicts)
    yield from _drift(case, rows)
    for table in ("alert_runs", "retirements"):
        for position, row in enumerate(rows[table], start=1):
            if row["seq"] != position:
                problem = f"row {position} should follow: rows are missing"
                yield Finding(case=case, table=table, row=f"seq {row['seq']}", column="seq", problem=problem)
                break


def _releases(case: str, rows: Iterable[Rows], verdicts: Mapping[str, Any]) -> Iterator[Finding]:
    previous = ""
    known = list[Release]()
    for position, row in enumerate(rows, start=1):
        wrong = partial(Finding, case=case, table="releases", row=f"seq {row['seq']}")
        try:
            release = ledger.read_release(row)
        except PerennialError as error:
            yield wrong(problem=str(error).partition(f": {ledger.LOOK}")[0])
            previous = str(row["hash"])
            continue
        if release.seq != position:
            yield wrong(column="seq", problem=f"row {position} should stand here: rows are missing")
        if release.previous_hash != previous:
            yield wrong(
                column="row",
                problem="does not continue the chain: its previous_hash is not the hash of the row before it",
            )
        previous = release.hash
        verdict = verdicts.get(release.verdict_hash or "")
        if verdict is None:
            yield wrong(
                column="row",
                problem=f"rests on the verdict {(release.verdict_hash or 'none')[:12]}, which the ledger does not have",
            )
        elif release.action == "promote" and verdict.get("decision") != "promote":
            yield wrong(column="row", problem=f"promotes a candidate whose verdict is {verdict.get('decision')}")
        if (wrongly := _rollout(known[-1] if known else None, release, verdicts)) is not None:
            yield wrong(column="row", problem=wrongly)
        own = ("champion", "candidate_key", "bundle", "verdict_hash")
        if release.action == "rollback" and not any(
            all(getattr(one, name) == getattr(release, name) for name in own) for one in known
        ):
            yield wrong(
                column="row", problem=f"goes back to version {release.champion}, which no earlier release let serve so"
            )
        known.append(release)


def _rollout(before: Release | None, release: Release, verdicts: Mapping[str, Any]) -> str | None:
    """What is wrong with a row about a rollout, seen from the row before it."""
    serves = (release.champion, release.candidate_key, release.bundle, release.verdict_hash)
    if release.action not in CHANGES:
        if before is None or serves != (before.champion, before.candidate_key, before.bundle, before.verdict_hash):
            return f"is a row of a rollout ({release.action}) and lets another version serve"
        if release.action == "open":
            cited = verdicts.get((release.trial.verdict_hash if release.trial else None) or "")
            by_hand = release.trial is not None and release.trial.by_hand
            if cited is None or (cited.get("decision") != "promote" and not by_hand):
                return f"lets version {release.challenger} on trial without a verdict that promotes it"
        elif release.challenger is not None:
            kept = (before.challenger, before.salt)
            lowered = release.weight < before.weight and not _by_bandit(before, release)
            if (release.challenger, release.salt) != kept or lowered:
                return "moves a rollout to another version, other keys or a lower share than the row before it"
    return None


def _by_bandit(before: Release, release: Release) -> bool:
    """Whether the bandit of an experiment moved the weight, in the step that it has for itself."""
    if before.trial is None or release.trial is None:
        return False
    experiment = release.trial.plan.get("experiment") or {}
    return bool(experiment.get("bandit")) and before.trial.step == release.trial.step == 0


def _drift(case: str, rows: Mapping[str, Iterable[Rows]]) -> Iterator[Finding]:
    opened, judged = (
        {row["episode"] for row in rows["drift_episodes"]},
        {str(row["as_of"]).partition("#")[0] for row in rows["drift_states"]},
    )
    for row in rows["drift_states"]:
        wrong = partial(Finding, case=case, table="drift_states", row=f"as_of {row['as_of']}", column="state")
        try:
            state = json.loads(row["state"])
            episode = (state.get("policy") or {}).get("episode")
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            yield wrong(problem=f"cannot be read: {error}")
            continue
        if episode is not None and episode not in opened:
            yield wrong(problem=f"names the episode {episode}, which the ledger does not have")
    for row in rows["drift_chain"]:
        if str(row["as_of"]).partition("#")[0] not in judged:
            yield Finding(
                case=case,
                table="drift_chain",
                row=f"previous {row['previous']}",
                column="as_of",
                problem=f"names {row['as_of']}: no such state",
            )
    for row in rows["drift_episodes"]:
        if row["as_of"] not in judged:
            problem = f"was opened at {row['as_of']}, and there is no state of that window"
            yield Finding(
                case=case, table="drift_episodes", row=f"episode {row['episode']}", column="as_of", problem=problem
            )


# --- what lies outside of the database ---------------------------------------------------------------


def _manifests(folder: Path) -> Iterator[tuple[Path, Manifest | str]]:
    """The manifests of a case's gates, rollouts and drift runs, those that a later run set aside too.

    Or what is wrong with one.
    """
    for step in ("gate", "rollout", "drift"):
        for path in sorted([*folder.glob(f"*/{step}/{MANIFEST}"), *folder.glob(f"*/{step}.*/{MANIFEST}")]):
            try:
                yield path, storage.read_manifest(path.parent, verify=False)
            except PerennialError as error:
                yield path, str(error)


def _runs(
    case: str, rows: Mapping[str, Iterable[Rows]], manifests: Iterable[tuple[Path, Manifest | str]]
) -> Iterator[Finding]:
    """Whether the ledger has what the runs say that they entered."""
    verdicts = {row["gate_key"]: row["hash"] for row in rows["verdicts"]}
    releases = {row["seq"]: _versions(row) for row in rows["releases"]}
    episodes = {row["episode"] for row in rows["drift_episodes"]}
    for path, manifest in manifests:
        wrong = partial(Finding, case=case, table="artefacts", row=str(path))
        if isinstance(manifest, str):
            yield wrong(problem=manifest)
            continue
        facts = manifest.facts
        if manifest.step == "gate" and verdicts.get(manifest.key) != facts.get("verdict_sha256"):
            said = "no verdict" if manifest.key not in verdicts else "another verdict"
            yield wrong(
                problem=(
                    f"the ledger has {said} of this gate run (gate_key {manifest.key[:12]}, "
                    f"{str(facts.get('verdict_sha256'))[:12]})"
                )
            )
        if (
            manifest.step == "rollout"
            and facts.get("seq") is not None
            and facts.get("version") not in releases.get(facts["seq"], ())
        ):
            yield wrong(
                problem=(
                    f"released version {facts.get('version')} as release {facts['seq']}; "
                    f"the ledger has {next(iter(releases.get(facts['seq'], ())), 'no such row')}"
                )
            )
        if manifest.step == "drift" and facts.get("episode") is not None and facts["episode"] not in episodes:
            yield wrong(problem=f"found the episode {facts['episode']}, which the ledger does not have")


def _versions(row: Rows) -> tuple[Any, ...]:
    """The champion of a row, and who is on trial beside it."""
    try:
        said = json.loads(row["row"])
        return said["champion"], *([said["challenger"]] if said.get("challenger") is not None else [])
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return ()


def _bundles(settings: Settings, case: str, rows: Mapping[str, Iterable[Rows]]) -> Iterator[Finding]:
    """Whether the folder of each version that was released, or on trial, holds the files that it was judged with.

    They were judged by the gate run that its verdict is from.
    """
    gates = {(row["hash"], row["gate_key"]) for row in rows["verdicts"]}
    seen = set[tuple[str, str]]()
    for release in _served(rows["releases"]):
        if (release.bundle, release.candidate_key) in seen:
            continue
        seen.add((release.bundle, release.candidate_key))
        wrong = partial(Finding, case=case, table="artefacts", row=release.bundle)
        try:
            folder = storage.find(settings.root / release.bundle, release.candidate_key)
            beside = [
                storage.read_manifest(path.parent, verify=False)
                for path in sorted(folder.parent.glob(f"gate*/{MANIFEST}"))
            ]
            judged = [gate.inputs["evaluate"] for gate in beside if (release.verdict_hash, gate.key) in gates]
            evaluated = [
                storage.read_manifest(storage.find(folder.parent / "evaluate", key), verify=False).inputs.get("export")
                for key in judged
            ]
            if release.candidate_key not in evaluated:
                yield wrong(
                    problem=(
                        f"no gate run beside it judged this artefact with the verdict that release {release.seq} cites"
                    )
                )
        except (PerennialError, OSError, KeyError) as error:
            yield wrong(problem=str(error))


def _served(rows: Iterable[Rows]) -> Iterator[Release]:
    """The releases of the rows that can be read (what is wrong with the others is said), and those on trial."""
    for row in rows:
        try:
            release = ledger.read_release(row)
        except PerennialError:
            continue
        yield release
        if release.contender is not None:
            yield release.contender
