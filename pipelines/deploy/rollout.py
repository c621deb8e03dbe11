"""The handshake with Triton: a version serves only after a real inference equalled ONNX Runtime.

Kept in the repository and loaded are the ledger's champion, the challenger of a rollout, the release that a rollback
would return to, and what served just before (gateways follow the ledger within seconds and may still ask for it).
A failure anywhere leaves the kept versions as they were.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines import ledger, runtime, storage
from pipelines.contracts import CHANGES, Release
from pipelines.deploy import repository, triton
from pipelines.encoding import encoder
from pipelines.errors import Crowded, IntegrityError, PerennialError, Unavailable
from pipelines.fields import Fields
from pipelines.params import DEFAULT_SERVING, ServingParams
from pipelines.settings import Settings

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-5
"""Largest difference of a probability between Triton and ONNX Runtime."""
PROBE_ROWS, PROBE_TEXTS = 32, 8
"""Rows of the inference that proves a version; a text costs a thousand times what a dense row does."""
log = logging.getLogger(__name__)


def kept(settings: Settings, case: str) -> dict[int, Release]:
    """The releases whose versions stay loaded, by version, the champion first.

    A challenger's is its row as if it served; one that was taken back is among them until the next row.
    """
    rows = ledger.chain(settings.ledger, case)
    history = [row for row in rows if row.action in CHANGES]
    below = ledger.previous_release(settings.ledger, case)
    tried = [row.contender for row in reversed(rows[-2:])]
    versions: dict[int, Release] = {}
    for release in (*history[-1:], *tried[:1], below, *history[-2:-1], *tried[1:]):
        if release is not None:
            versions.setdefault(release.champion, release)
    return versions


Settled = Literal["promoted", "already_released", "stale", "opened", "aborted"]


def settled(
    history: Sequence[Release], candidate_key: str, version: int, champion: int | None, as_of: datetime
) -> tuple[Settled, Release | None] | None:
    """What became of a candidate that was judged against ``champion`` at ``as_of``, and its row; None: nothing yet.

    ``history`` are all rows of the case, oldest first. A candidate that was rolled back, or whose rollout ended
    otherwise than by its release (``aborted``), does not come back by running again, and one does not take the place of
    another champion than the one that it was judged against. ``opened``: its rollout is under way.
    """
    newest = next((row for row in reversed(history) if row.action in CHANGES), None)
    earlier = [row for row in history if row.action in CHANGES and row.candidate_key == candidate_key]
    if earlier:
        mine = earlier[-1]
        # A try that died after the ledger's row finds its own release still serving: that is its promotion.
        if mine is newest and mine.action == "promote" and mine.champion == version:
            return "promoted", mine
        return "already_released", mine
    tried = [row for row in history if row.trial is not None and row.trial.candidate_key == candidate_key]
    if tried:
        if tried[-1] is history[-1] and tried[-1].challenger is not None:
            return "opened", tried[-1]
        return "aborted", tried[0]
    if newest is None and champion is None:
        return None
    if newest is None or newest.champion != champion or as_of < newest.as_of:
        return "stale", None
    return None


def bundle_of(settings: Settings, release: Release) -> Path:
    """The folder of a release's bundle, also if a later run of the same ``as_of`` set it aside.

    Raises IntegrityError if it is gone.
    """
    return storage.find(settings.root / release.bundle, release.candidate_key)


def probe_tensors(fields: Fields, bundle: Path) -> dict[str, NDArray[Any]]:
    """The first rows of the holdout that the bundle was judged on (of its training rows if that is empty), encoded.

    Raises IntegrityError if the bundle was made for other fields than ``fields``.
    """
    import polars as pl

    about = json.loads((bundle / "bundle.json").read_text())
    if about["fields_hash"] != fields.hash:
        raise IntegrityError(
            f"{bundle} was made for other fields of {fields.case} ({about['fields_hash'][:12]}, "
            f"now {fields.hash[:12]}): "
            "train a new candidate, or go back to the commit of its fields"
        )
    dataset = storage.find(bundle.parent / "dataset", about["dataset_key"])
    most = PROBE_ROWS if fields.text is None else PROBE_TEXTS
    for part in ("holdout", "train"):
        rows = pl.read_parquet(dataset / f"{part}.parquet", columns=list(fields.reads), n_rows=most)
        if rows.height:
            return encoder(fields, bundle)({name: rows[name].to_list() for name in fields.reads})
    raise IntegrityError(f"{dataset} has no rows to probe a model with: move it away and run the step 'dataset' again")


def prove(settings: Settings, fields: Fields, version: int, bundle: Path) -> None:
    """Require Triton's ``version`` to answer the probe rows as ONNX Runtime does on the bundle.

    Raises Unavailable if it does not answer, IntegrityError if an answer differs by more than TOLERANCE (of a
    number: times the largest one).
    """
    import numpy as np

    tensors = probe_tensors(fields, bundle)
    expected = runtime.score(bundle, tensors)
    found = triton.infer(settings, fields.case, version, tensors)
    allowed = TOLERANCE
    if fields.number is not None:  # float32 rounds by the largest number
        allowed *= float(np.abs(expected).max())
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=allowed):
        worst = f"in shape: {found.shape}, not {expected.shape}"
        if found.shape == expected.shape:
            worst = f"by up to {np.abs(found - expected).max():.2g}"
        raise IntegrityError(
            f"{fields.case} version {version} in Triton differs from ONNX Runtime on {bundle} {worst}: "
            "it must not serve"
        )


def offer(
    settings: Settings,
    fields: Fields,
    version: int,
    bundle: Path,
    *,
    serving: ServingParams = DEFAULT_SERVING,
    revive: bool = False,
) -> None:
    """Stage, load and prove ``version`` beside the kept ones; ``revive`` loads it anew if it does not answer.

    As ``serving`` says; what a GPU does not load, or does not answer as ONNX Runtime does, is proved on the CPU. Call
    while :func:`repository.alone`. Raises IntegrityError if the bundle's files are not those that were committed.
    """
    storage.read_manifest(bundle)
    repository.stage(settings.model_repository, fields.case, version, bundle)
    storage.failpoint("rollout", "staged")
    versions = {*kept(settings, fields.case), version}
    _load(settings, fields, versions, serving)
    storage.failpoint("rollout", "loaded")
    if revive:
        _revive(settings, fields, version, bundle)
        return
    try:
        prove(settings, fields, version, bundle)
    except (IntegrityError, Unavailable) as error:
        if not _on_gpu(settings, fields.case):
            raise
        _fall_back(settings, fields, versions, serving, str(error))
        prove(settings, fields, version, bundle)


def _load(settings: Settings, fields: Fields, versions: Collection[int], serving: ServingParams) -> str:
    """Have Triton load ``versions`` as the case is to be served, or if it refuses that, on the CPU.

    Returns why it is not the device, if so. Raises what :func:`triton.load` raises: versions that the CPU does not take
    either are no matter of devices.
    """
    repository.configure(settings.model_repository, fields, versions, serving)
    try:
        triton.load(settings, fields.case)
    except IntegrityError as error:
        if serving.device == "cpu":
            raise
        _fall_back(settings, fields, versions, serving, str(error))
        return str(error)
    unit = "GPU" if _on_gpu(settings, fields.case) else "CPU"
    log.info("%s is served on the %s (serving.device: %s)", fields.case, unit, serving.device)
    return ""


def _fall_back(settings: Settings, fields: Fields, versions: Collection[int], serving: ServingParams, why: str) -> None:
    """Load ``versions`` on the CPU, and say why."""
    repository.configure(settings.model_repository, fields, versions, repository.on_cpu(serving), instead=why)
    triton.load(settings, fields.case)
    log.warning("%s is served on the CPU instead of a GPU: %s", fields.case, why)


def _on_gpu(settings: Settings, case: str) -> bool:
    """Whether Triton put the case on a GPU; False also where it does not tell."""
    with suppress(PerennialError):
        return "gpu" in triton.devices(settings, case)
    return False


def _place(settings: Settings, fields: Fields, versions: Collection[int], serving: ServingParams) -> list[str]:
    """Configure and load ``versions``; returns what that mended.

    A case that fell back to the CPU stays there until its versions or ``serving`` change: every try would load them all
    anew.
    """
    folder = settings.model_repository
    case = fields.case
    before = repository.read_config(folder, case)
    mended = list[str]()
    missing = [version for version in versions if not triton.loaded(settings, case, version)]
    if serving.device != "cpu" and repository.fell_back(folder, fields, versions, serving):
        triton.load(settings, case)
    elif refused := _load(settings, fields, versions, serving):
        mended.append(f"on the CPU instead of a GPU: {refused}")
    if repository.read_config(folder, case) != before:
        mended.append(f"configured versions {', '.join(map(str, sorted(versions)))}")
    return mended + [f"loaded version {version}" for version in missing]


def promote(
    settings: Settings,
    fields: Fields,
    version: int,
    bundle: Path,
    append: Callable[[], Release],
    serving: ServingParams = DEFAULT_SERVING,
    *,
    revive: bool = False,
) -> Release:
    """Offer a candidate, then ``append`` its release; call while :func:`repository.alone`.

    If anything fails, ``append`` included, the kept versions are put back and the error goes on.
    """
    before = list(kept(settings, fields.case))
    try:
        offer(settings, fields, version, bundle, serving=serving, revive=revive)
        release = append()
    except BaseException:
        _withdraw(settings, fields, before, serving)
        raise
    storage.failpoint("rollout", "appended")
    return release


def _withdraw(settings: Settings, fields: Fields, before: list[int], serving: ServingParams) -> None:
    """Go back to the versions ``before``; what Triton cannot do now, reconcile does later."""
    with suppress(PerennialError):
        if before:
            _load(settings, fields, before, serving)
        else:
            triton.unload(settings, fields.case)
    repository.retire(settings.model_repository, fields.case, before)


def restore(
    settings: Settings, fields: Fields, serving: ServingParams = DEFAULT_SERVING, *, retired: bool | None = None
) -> list[str]:
    """Make the repository and Triton what the ledger says; returns what was repaired.

    Call while :func:`repository.alone`. The champion must answer in the end, or the error that keeps it from answering
    is raised. An older version that cannot be brought back is reported and left out: nothing asks for it now. Of a case
    that has no release, or is ``retired`` (None: if the ledger says so), nothing is left loaded.
    """
    case = fields.case
    repaired = list[str]()
    bundles = dict[int, Path]()
    if retired is None:
        retired = ledger.retirement(settings.ledger, case) is not None
    releases = {} if retired else kept(settings, case)
    if not releases:
        return clear(settings, case)
    for version, release in releases.items():
        try:
            bundle = bundle_of(settings, release)
            probe_tensors(fields, bundle)
            if repository.stage(settings.model_repository, case, version, bundle):
                repaired.append(f"staged version {version} from {release.bundle}")
            bundles[version] = bundle
        except PerennialError as error:
            if not bundles:  # the champion comes first
                raise
            log.warning("%s: version %d cannot be kept ready for a rollback: %s", case, version, error)
            repaired.append(f"left out version {version}: {error}")
    repaired += _place(settings, fields, bundles, serving)
    for version, bundle in bundles.items():
        if _revive(settings, fields, version, bundle):
            repaired.append(f"revived version {version}")
    repaired += [
        f"retired version {version}" for version in repository.retire(settings.model_repository, case, bundles)
    ]
    return repaired


def clear(settings: Settings, case: str) -> list[str]:
    """Leave nothing of a case in Triton and in the model repository; returns what was done.

    Its bundles stay. Call while :func:`repository.alone`. Raises Unavailable if Triton is asked and does not answer.
    """
    folder = settings.model_repository
    if not repository.staged(folder, case) and not repository.read_config(folder, case):
        return []
    triton.unload(settings, case)
    return ["unloaded", *(f"retired version {version}" for version in repository.retire(folder, case, ()))]


def clear_strays(settings: Settings, gone: Collection[str] = ()) -> list[str]:
    """Unload what Triton has loaded of this state and the ledger does not name; returns what was done.

    That is a case without a release, one that is retired, and one of those that are ``gone``. What somebody works on at
    this moment is left to him. Raises Unavailable if Triton does not answer.
    """
    folder, done = settings.model_repository, list[str]()
    for case in sorted(triton.index(settings) & (repository.models(folder) | set(ledger.cases(settings.ledger)))):
        with suppress(repository.Busy), repository.alone(folder, case, patience=0.0):
            why = "its folder is gone" if case in gone else _stray(settings, case)
            if why:
                triton.unload(settings, case)
                repository.retire(folder, case, ())
                done.append(f"unloaded {case}: {why}")
    return done


def _stray(settings: Settings, case: str) -> str:
    """Why a case that is loaded should not be; "" if it should, or nobody can say."""
    try:
        if ledger.retirement(settings.ledger, case) is not None:
            return "it is retired"
        if ledger.head(settings.ledger, case) is None:
            return "it has no release"
    except IntegrityError as error:
        log.warning("%s goes on as it is: %s", case, error)
    return ""


def _revive(settings: Settings, fields: Fields, version: int, bundle: Path) -> bool:
    """Prove a version; if it does not answer, have it loaded anew. Whether that was needed.

    Raises Crowded where it has no time for a proof: it lives, and loading it would lose what waits. Raises Late where
    it has none though it was loaded anew: it is the machine that has no time, and to unload the case, as the last way
    is, takes the answers of all its versions.
    """
    try:
        prove(settings, fields, version, bundle)
    except Crowded:
        raise
    except (Unavailable, IntegrityError) as error:
        log.warning("%s: %s; loading it again", fields.case, error)
    else:
        return False
    # Triton starts a new stub for this version alone, the others go on answering.
    repository.renew(settings.model_repository / fields.case / str(version))
    triton.load(settings, fields.case)
    try:
        prove(settings, fields, version, bundle)
    except triton.Late:
        raise
    except Unavailable as error:
        log.warning("%s: %s; unloading all of it, and loading it again", fields.case, error)
    else:
        return True
    triton.unload(settings, fields.case)
    triton.load(settings, fields.case)
    prove(settings, fields, version, bundle)
    return True
