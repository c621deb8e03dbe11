"""reconcile: make Triton and MLflow's aliases say what the ledger says. Running it again changes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Any

from pipelines import case_files, ledger, places
from pipelines.alerts import runs, sinks
from pipelines.cases import load_fields
from pipelines.deploy import repository, rollout
from pipelines.errors import PerennialError, Unavailable
from pipelines.params import Params
from pipelines.params_file import load_params
from pipelines.provenance import wall_time
from pipelines.registry import aliases
from pipelines.settings import Settings

GONE_SECONDS = 600.0
"""For so long a case's folder must have been gone before its versions are unloaded: a mount may be away for a while."""
log = logging.getLogger(__name__)


def run(params: Params, settings: Settings) -> dict[str, Any]:
    """``{"case", "champion", "repaired": what was mended}``; the champion of a retired case is None.

    Serving first, so that a missing MLflow delays no repair of Triton. A version that the model repository lost is
    staged again from its bundle, one that does not answer is loaded anew. What Triton has loaded of other cases and the
    ledger does not name is unloaded, and a case that came back is loaded. Raises Unavailable, naming what was left as
    it is, if Triton or MLflow is away (the other one is mended all the same), IntegrityError if the champion cannot be
    brought back. People are told of an alias that somebody else moved, once.
    """
    case, away = params.case, list[str]()
    repaired: list[str] = []
    try:
        with repository.alone(settings.model_repository, case):
            head = ledger.head(settings.ledger, case)
            retired = ledger.retirement(settings.ledger, case) is not None
            repaired += rollout.restore(settings, load_fields(case), params.serving, retired=retired)
        if head is not None:
            repaired += _others(params, settings)
    except Unavailable as error:
        away.append(f"Triton's versions: {error}")
    try:
        repaired += aliases.project(settings, case)
        _tell_moves(params, settings)
    except Unavailable as error:
        away.append(f"MLflow's aliases: {error}")
    if away:
        raise Unavailable(f"{case} is not reconciled. {'. '.join(away)}. Mended: {', '.join(repaired) or 'nothing'}")
    champion = None if head is None or retired else head.champion
    return {"case": case, "champion": champion, "repaired": repaired}


def _tell_moves(params: Params, settings: Settings) -> None:
    """Tell people of the aliases that somebody moved in MLflow, by this run or whoever repaired them before."""
    done = []
    for move in aliases.untold(settings, params.case):
        notice = runs.moved(params, settings.runbooks, move.alias, move.was, move.found, move.number, wall_time())
        if runs.tell_once(params, settings, notice):
            done.append(move.number)
    if done:
        aliases.told(settings, params.case, done)


def _others(params: Params, settings: Settings) -> list[str]:
    """The same of the other cases, as far as nobody else does it: what is gone or has come back."""
    folder, known = settings.model_repository, set(case_files.case_names())
    gone = list[str]()
    if _sees_all_cases(settings):
        gone = _gone(params, settings, known)
    done = rollout.clear_strays(settings, gone)
    lost = known - repository.models(folder) - {params.case}
    for case in sorted(lost & set(ledger.cases(settings.ledger))):
        try:
            fields, serving = load_fields(case), load_params(case).serving
            with repository.alone(folder, case, patience=0.0):
                mended = rollout.restore(settings, fields, serving)
        except PerennialError as error:
            log.warning("%s is left as it is: %s", case, error)
        else:
            done += [f"{case}: {what}" for what in mended]
    return done


def _gone(params: Params, settings: Settings, known: Collection[str]) -> list[str]:
    """The cases whose folders have been gone for long enough to be unloaded; people are told of those that are new."""
    folder, found = settings.model_repository, ledger.gone(settings.ledger, known)
    for case in repository.note_gone(folder, found.keys()):
        notice = runs.gone(params, settings.runbooks, found[case], wall_time())
        try:
            runs.tell(params, settings, notice)
        except sinks.Undelivered as error:
            log.warning("nobody was told that the folder of %s is gone (`status` does): %s", case, error)
    return [case for case in found if repository.gone_for(folder, case) >= GONE_SECONDS]


def _sees_all_cases(settings: Settings) -> bool:
    """Whether a case that this process does not find is gone.

    On the state of a stack only the stack's own processes can say so: a shell may lack ``PERENNIAL_CASES``, or a
    package.
    """
    return places.TAG in os.environ or not (settings.root / places.ENV).exists()
