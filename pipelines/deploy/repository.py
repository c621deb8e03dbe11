"""Triton's model repository: ``<case>/config.pbtxt`` and ``<case>/<version>/model.onnx``.

One layout serves the embedded Triton (ONNX Runtime in Python) and the official container (in C++). A
version appears by one rename, the configuration by another; the configuration names the versions that
Triton may load, so a half-done rollout is never served. One writer at a time holds :func:`alone`.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipelines import locks, storage
from pipelines.encoding import signature
from pipelines.errors import IntegrityError, Unavailable
from pipelines.fields import Fields
from pipelines.files import file_sha256, fsync_folder, usual_mode, write_atomic
from pipelines.params import DEFAULT_SERVING, Batching, Device, Queue, ServingParams
from pipelines.provenance import wall_time
from pipelines.runtime import MODEL

CONFIG = "config.pbtxt"
MAX_BATCH = 1024
_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32"}

_CONFIG = """name: "{case}"
backend: "onnxruntime"
max_batch_size: {batch}
input [
  {inputs}
]
output [ {output} ]
version_policy {{ specific {{ versions: [ {versions} ] }} }}
instance_group [ {{ kind: {kind} count: {instances} }} ]
{batching}parameters [
  {{ key: "intra_op_thread_count" value: {{ string_value: "1" }} }},
  {{ key: "session.intra_op.allow_spinning" value: {{ string_value: "0" }} }}
]
"""
# Not batched unless a case says so: on a CPU it costs a small model latency, and brings a transformer nothing (its work
# grows with the tokens).
_BATCHING = """dynamic_batching {{
  preferred_batch_size: [ {preferred} ]
  max_queue_delay_microseconds: {window}
{queue}}}
"""
_QUEUE = """  default_queue_policy {{
    timeout_action: REJECT
    default_timeout_microseconds: {timeout}
    allow_timeout_override: true
    max_queue_size: {size}
  }}
"""
# Not written unless a case asks for it: with a policy Triton's batcher begins a batch only where an instance waits for
# one, and looks again after half a second if it came too early (core, pull request 237; server, issue 8870).
LONGEST_WAIT_MS = 3_600_000.0
"""A request's own timeout can only shorten the queue's, so that where none is declared it needs one that is longer."""


_KINDS: dict[Device, str] = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
"""KIND_AUTO is a GPU's instance in a Triton that has one, and a CPU's elsewhere.

KIND_GPU is refused where there is none.
"""
_INSTEAD = "# on the CPU instead: "
_VERSIONS = r"versions: \[([\d, ]*)\]"


class Busy(Unavailable):
    """Another process works on the case's part of the repository."""


def config(fields: Fields, versions: Iterable[int], serving: ServingParams = DEFAULT_SERVING) -> str:
    """Text of a case's config.pbtxt: tensors and ``serving`` as declared, exactly ``versions`` to be loaded."""
    inputs, output = signature(fields)
    return _CONFIG.format(
        case=fields.case,
        batch=MAX_BATCH,
        inputs=",\n  ".join(map(_tensor, inputs)),
        output=_tensor(output),
        versions=", ".join(map(str, sorted(versions))),
        kind=_KINDS[serving.device],
        instances=serving.instances,
        batching="" if serving.batching is None else _batching(serving.batching),
    )


def _batching(declared: Batching) -> str:
    """Triton's dynamic batcher as declared, in microseconds."""
    queue, policy = declared.queue, ""
    if queue != Queue():
        timeout = _microseconds(LONGEST_WAIT_MS if queue.timeout_ms is None else queue.timeout_ms)
        policy = _QUEUE.format(timeout=timeout, size=queue.size)
    return _BATCHING.format(
        preferred=", ".join(map(str, declared.preferred_rows)), window=_microseconds(declared.window_ms), queue=policy
    )


def _microseconds(milliseconds: float) -> int:
    """At least one, of what is not 0: Triton takes 0 for none."""
    return max(round(milliseconds * 1000), int(milliseconds > 0))


def _tensor(declared: Mapping[str, Any]) -> str:
    """A tensor of the signature in Triton's words.

    The batch axis left out, -1 for what may differ from request to request.
    """
    dims = ", ".join(map(str, declared["shape"][1:]))
    return f'{{ name: "{declared["name"]}" data_type: {_TYPES[declared["dtype"]]} dims: [ {dims} ] }}'


@contextmanager
def alone(repository: Path, case: str, *, patience: float = 60.0) -> Iterator[None]:
    """Be the only writer of a case's part of the repository; the lock ends with its process.

    Raises Busy after ``patience`` seconds, naming the pid that holds it. The lock only spares work:
    which of two rollouts wins is the ledger's decision.
    """
    repository.mkdir(parents=True, exist_ok=True)
    path = repository / f".{case}.lock"

    def refusal(pid: str) -> Busy:
        return Busy(
            f"{path} is held by process {pid} for more than {patience:g} s: see what it does, end it if it hangs"
        )

    with locks.alone(path, refusal, patience=patience):
        yield


def stage(repository: Path, case: str, version: int, bundle: Path) -> bool:
    """Put the bundle's model into the repository as ``version``; whether there was anything to do.

    The bytes are checked against the bundle's manifest before and after copying (IntegrityError). A version
    that is there with other bytes is replaced: version numbers are never reused, so it can only be damaged.
    """
    expected = storage.read_manifest(bundle, verify=False).files.get(MODEL)
    if expected is None or not (bundle / MODEL).exists():
        raise IntegrityError(f"{bundle} has no {MODEL}: restore the folder, or run the step 'export' again")
    target = repository / case / str(version)
    sweep(repository, case)
    if (target / MODEL).exists() and file_sha256(target / MODEL) == expected:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=repository, prefix=f".{case}.stage."))
    damaged = work.with_name(f"{work.name}.damaged")
    try:
        shutil.copyfile(bundle / MODEL, work / MODEL)
        with (work / MODEL).open("rb") as file:
            os.fsync(file.fileno())
        found = file_sha256(work / MODEL)
        if found != expected:
            raise IntegrityError(
                f"{bundle / MODEL} has sha256 {found[:12]}, its manifest says {expected[:12]}: "
                "it is damaged and was not staged"
            )
        fsync_folder(work)
        work.chmod(usual_mode(0o777))
        if target.exists():
            os.rename(target, damaged)
        os.rename(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(damaged, ignore_errors=True)
    fsync_folder(target.parent)
    return True


def configure(
    repository: Path,
    fields: Fields,
    versions: Iterable[int],
    serving: ServingParams = DEFAULT_SERVING,
    *,
    instead: str = "",
) -> bool:
    """Write the case's configuration for ``versions``; False if it said just that already.

    ``instead`` is why it is not the device that the case asks for: a comment that :func:`instead_of_gpu` reads back.
    Where more than the versions changes, Triton will load each of them anew: of other instances alone it would make
    more or fewer of a version that answers, and whoever asks it then may wait for ever.
    """
    text = config(fields, versions, serving)
    if instead:
        text += f"{_INSTEAD}{' '.join(instead.split())}\n"
    before = read_config(repository, fields.case)
    if before == text:
        return False
    if before and _but_versions(before) != _but_versions(text):
        for model in (repository / fields.case).glob(f"[0-9]*/{MODEL}"):
            renew(model.parent)
    write_atomic(repository / fields.case / CONFIG, text.encode())
    return True


def renew(version: Path) -> None:
    """Make Triton load the version in this folder anew when its case is loaded: a newer file is another model to it."""
    os.utime(version / MODEL)


def _but_versions(text: str) -> str:
    return re.sub(_VERSIONS, "", text.partition(_INSTEAD)[0])


def read_config(repository: Path, case: str) -> str:
    """The case's configuration; empty if there is none."""
    path = repository / case / CONFIG
    if not path.exists():
        return ""
    return path.read_text()


def configured(repository: Path, case: str) -> list[int]:
    """The versions that the case's configuration names; none if there is no configuration."""
    found = re.search(_VERSIONS, read_config(repository, case))
    if found is None:
        return []
    return [int(number) for number in found[1].split(",") if number.strip()]


def instead_of_gpu(repository: Path, case: str) -> str:
    """Why the case's configuration says CPU though the case asks for a GPU; empty if it says what was asked for."""
    return read_config(repository, case).partition(_INSTEAD)[2].strip()


def fell_back(repository: Path, fields: Fields, versions: Iterable[int], serving: ServingParams) -> bool:
    """Whether the case's configuration is ``serving`` for these versions, on the CPU instead of a GPU."""
    text, instead, _ = read_config(repository, fields.case).partition(_INSTEAD)
    return bool(instead) and text == config(fields, versions, on_cpu(serving))


def on_cpu(serving: ServingParams) -> ServingParams:
    """The same on the CPU."""
    return serving.model_copy(update={"device": "cpu"})


def staged(repository: Path, case: str) -> list[int]:
    """The versions whose folders are there, in ascending order."""
    return sorted(int(path.name) for path in (repository / case).glob("[0-9]*") if path.name.isdigit())


def retire(repository: Path, case: str, keep: Collection[int]) -> list[int]:
    """Delete the folders of all versions but ``keep`` (with none to keep, the configuration too).

    Returns the versions deleted. Configure and load first: Triton reads the files of a version for as long as it loads
    it.
    """
    gone = [version for version in staged(repository, case) if version not in keep]
    for version in gone:
        shutil.rmtree(repository / case / str(version), ignore_errors=True)
    if not keep:
        (repository / case / CONFIG).unlink(missing_ok=True)
    return gone


def models(repository: Path) -> set[str]:
    """The cases that have a part of the repository."""
    return {path.parent.name for path in repository.glob(f"*/{CONFIG}")}


def note_gone(repository: Path, cases: Collection[str]) -> list[str]:
    """Note that the folders of these cases are gone, and of all others that they are not; which ones are new."""
    repository.mkdir(parents=True, exist_ok=True)
    marks = {case: _mark(repository, case) for case in cases}
    for path in repository.glob(_mark(Path(), "*").name):
        if path not in marks.values():
            path.unlink(missing_ok=True)
    new = [case for case, path in marks.items() if not path.exists()]
    for case in new:
        marks[case].touch()
    return new


def gone_for(repository: Path, case: str) -> float:
    """For how many seconds a case's folder has been noted to be gone."""
    return wall_time().timestamp() - _mark(repository, case).stat().st_mtime


def _mark(repository: Path, case: str) -> Path:
    return repository / f".{case}.gone"


def sweep(repository: Path, case: str) -> None:
    """Delete what a killed :func:`stage` left behind; only while :func:`alone`."""
    for path in repository.glob(f".{case}.stage.*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (repository / case).glob(f".{CONFIG}.*"):
        path.unlink(missing_ok=True)
