"""Look for a candidate's parameters: trials by Optuna's TPE, each compared as a candidate is. The home of Optuna.

A study lies in the working folder as a journal. What a trial tries is a function of the seed, its number and the trials
before it, so that a try that was killed goes on as if nobody had: its unfinished trial is finished with its values.
Source: Bergstra et al., Algorithms for hyper-parameter optimization, NeurIPS 2011 (TPE).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from pydantic import ValidationError

from pipelines.errors import ConfigError
from pipelines.params import MORE_IS_BETTER, Choices, Dimension, Params, SearchParams, family_of
from pipelines.search_space import changed, space_of
from pipelines.training.compare import Compared, Comparison, Pruned

STRIDE = 1_000_003
"""A prime that keeps the seeds of different (seed, trial) apart."""
COMPARED = "compared"
"""A trial's attribute: what the comparison found."""

log = logging.getLogger(__name__)


def search(comparison: Comparison, declared: Mapping[str, Compared]) -> Iterator[Compared]:
    """The trials of all candidates, those of earlier tries first; one of each candidate after the other.

    ``declared`` is how the candidates did as they are declared; one that failed is not tuned. No trial starts once all
    of them took ``minutes``, over all tries. Raises ConfigError without Optuna, and what
    :meth:`pipelines.training.compare.Comparison.of` raises.
    """
    params = comparison.task.params
    settings = params.train.search
    if settings is None:
        return
    optuna = _optuna()
    names = [name for name, found in declared.items() if found.value is not None and space_of(params, name)]
    studies = {name: _study(optuna, comparison, name, settings) for name in names}
    spent = 0.0
    best = {name: declared[name] for name in names}
    for name in names:
        for trial in studies[name].trials:
            if trial.state.is_finished() and COMPARED in trial.user_attrs:
                found = Compared(**trial.user_attrs[COMPARED])
                spent += found.seconds
                best[name] = min(best[name], found, key=comparison.better)
                yield found
    for number in range(settings.trials):
        for name, study in studies.items():
            done = [trial for trial in study.trials if trial.state.is_finished()]
            if len(done) > number:
                continue
            if settings.minutes is not None and spent >= 60 * settings.minutes:
                log.info("%s: the %g minutes of train.search are spent", params.case, settings.minutes)
                return
            found = _trial(optuna, study, comparison, name)
            spent += found.seconds
            best[name] = min(best[name], found, key=comparison.better)
            log.info("%s: %s", params.case, _said(found, number, settings.trials, best[name]))
            yield found


def check() -> None:
    """Raise ConfigError if there is no Optuna, before anything is trained."""
    _optuna()


def of_trial(params: Params, found: Compared) -> tuple[Any, dict[str, Any]]:
    """The model and the train parameters of what was compared."""
    return changed(params, found.candidate, found.values)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(
            f"train.search needs Optuna, which is not installed ({error}): run make setup, or leave train.search out"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(optuna: Any, comparison: Comparison, name: str, settings: SearchParams) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    comparison.folder.mkdir(parents=True, exist_ok=True)
    pruner = optuna.pruners.NopPruner()
    if settings.pruner == "median":
        pruner = optuna.pruners.MedianPruner()
    return optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(comparison.folder / f"{name}.journal"))),
        pruner=pruner,
        direction="maximize" if comparison.metric in MORE_IS_BETTER else "minimize",
        load_if_exists=True,
    )


def _trial(optuna: Any, study: Any, comparison: Comparison, name: str) -> Compared:
    """The next trial of a study, or the one that a killed try left unfinished."""
    params = comparison.task.params
    left = [trial for trial in study.trials if not trial.state.is_finished()]
    number = left[0].number if left else len(study.trials)
    study.sampler = optuna.samplers.TPESampler(seed=(params.train.seed + STRIDE * (number + 1)) % 2**32)
    trial = optuna.trial.Trial(study, left[0]._trial_id) if left else study.ask()  # noqa: SLF001 - it has no other name
    values = {path: _suggest(trial, path, dimension) for path, dimension in space_of(params, name).items()}
    label = f"{name}.{number}"

    def report(epoch: int, value: float) -> None:
        trial.report(value, epoch)
        if trial.should_prune():
            raise Pruned(f"pruned after epoch {epoch + 1}, at a {comparison.metric} of {value:.6g}")

    state = None
    try:
        model, train = changed(params, name, values)
        found = comparison.of(label, params.alone(model, train), candidate=name, values=values, report=report)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        found = Compared(label, family_of(params.candidates[name]), comparison.metric, None, 0.0, said, name, values)
    if found.value is None:
        state = optuna.trial.TrialState.PRUNED if found.pruned else optuna.trial.TrialState.FAIL
    trial.set_user_attr(COMPARED, asdict(found))
    study.tell(trial, found.value, state)
    return found


def _suggest(trial: Any, path: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choices):
        # As text: Optuna keeps no lists.
        return json.loads(trial.suggest_categorical(path, [json.dumps(choice) for choice in dimension.choices]))
    if dimension.integer:
        return int(trial.suggest_int(path, int(dimension.low), int(dimension.high), log=dimension.log))
    return float(trial.suggest_float(path, dimension.low, dimension.high, log=dimension.log))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _said(found: Compared, number: int, trials: int, best: Compared) -> str:
    tried = ", ".join(f"{path} {_shown(value)}" for path, value in found.values.items())
    outcome = found.error if found.value is None else f"{found.metric} {found.value:.6g}"
    return (
        f"trial {number + 1} of {trials} of {found.candidate}: {outcome} in {found.seconds:.1f} s "
        f"(best {best.value:.6g} by {best.name}): {tried}"
    )
