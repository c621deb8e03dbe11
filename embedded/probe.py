"""Does Triton really answer for every champion of the ledger? "Ready" does not say so: a dead stub leaves it true.

`python -m embedded.probe` brings back those that do not; Triton's guard runs it when a stub has died.
"""

from __future__ import annotations

import sys
from pathlib import Path

from embedded import triton
from embedded.ports import Ports
from pipelines import ledger
from pipelines.case_files import case_names
from pipelines.contracts import Release
from pipelines.deploy import triton as calls
from pipelines.errors import IntegrityError, PerennialError, Unavailable
from pipelines.params_file import load_params
from pipelines.settings import Settings, read_settings


def champions(home: Path, settings: Settings | None = None, damaged: dict[str, str] | None = None) -> list[Release]:
    """The head release of every case that has one, a folder, and is not retired.

    They come from the ledger of ``home`` (or of the settings, else of ``PERENNIAL_LEDGER_URL``). A case whose rows are
    not what the ledger wrote has none; ``damaged`` is told what is wrong with it.
    """
    settings = settings or read_settings(home=home)
    if not settings.ledger_url and not (settings.root / "ledger.db").exists():
        return []
    found = []
    retired = ledger.retired(settings.ledger, case_names())
    if damaged is not None:
        damaged |= retired.damaged
    for case in case_names():
        if case in retired.now or case in retired.damaged:
            continue
        try:
            release = ledger.head(settings.ledger, case)
        except IntegrityError as error:
            if damaged is not None:
                damaged[case] = str(error)
            continue
        if release is not None:
            found.append(release)
    return found


def champions_answer(home: Path, ports: Ports, settings: Settings | None = None) -> bool:
    """Run an inference on each champion; Unavailable names the case, its version and Triton's words."""
    for release in champions(home, settings):
        try:
            infer(release.case, release.champion, settings or triton.settings(home, ports))
        except Unavailable as error:
            raise Unavailable(f"case {release.case}: champion {release.champion} does not answer: {error}") from error
    return True


def restore(home: Path, ports: Ports, broken: list[str], settings: Settings | None = None) -> bool:
    """Bring every champion back into a fresh Triton and compare a real inference with ONNX Runtime; always True.

    A champion that cannot serve (its bundle is gone, its fields were changed) goes into ``broken`` with the
    reason: it must not keep the stack down, in which its successor would be trained.
    """
    _restore(settings or triton.settings(home, ports), broken)
    return True


def _restore(settings: Settings, broken: list[str]) -> None:
    damaged = dict[str, str]()
    found = champions(settings.root, settings, damaged)
    broken += [f"case {case}: {problem}" for case, problem in damaged.items()]
    if found:
        from pipelines.cases import load_fields
        from pipelines.deploy import repository, rollout  # imports ONNX Runtime

        for release in found:
            try:
                with repository.alone(settings.model_repository, release.case):
                    rollout.restore(settings, load_fields(release.case), load_params(release.case).serving)
            except PerennialError as error:
                broken.append(f"case {release.case}, champion {release.champion}: {error}")


def main() -> int:
    """Bring back the champions that do not answer, by hand or by Triton's guard.

    A stub that was killed stays dead in Triton.
    """
    broken = list[str]()
    try:
        _restore(read_settings(), broken)
    except PerennialError as error:
        print(f"probe: {error}", file=sys.stderr)
        return error.exit_code
    for problem in broken:
        print(problem, file=sys.stderr)
    if broken:
        return 1
    return 0


def infer(model: str, version: int, settings: Settings) -> None:
    """One inference on a row of zeros, made from the version's own metadata.

    Unavailable with Triton's words if it has no answer.
    """
    calls.infer(settings, model, version, calls.zeros(settings, model, version))


if __name__ == "__main__":
    sys.exit(main())
