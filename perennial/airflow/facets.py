"""What OpenLineage is told of a step: its datasets with their versions, and its facts.

Imported by the operator only when Airflow's provider for OpenLineage asks it, so that nobody needs that provider.
A dataset is (``perennial://<case>``, ``data`` | ``dataset`` | ``model`` | ``release``): what one step makes and the
next one uses is equal in both, which joins them to one graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: TID253 - this module is its only home
from attrs import define, field
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    OutputDatasetFacet,
    RunFacet,
    dataset_version_dataset,
    output_statistics_output_dataset,
    schema_dataset,
)

from perennial.airflow.links import Ended
from perennial.airflow.run import small
from pipelines import objects
from pipelines.contracts import Manifest
from pipelines.line.order import DATASET, INGEST, REGISTER, ROLLOUT
from pipelines.line.step import Action, Step
from pipelines.storage import MANIFEST

ROWS = ("data", "dataset")
"""The datasets that are rows of the case's fields."""


@define
class PerennialRunFacet(RunFacet):
    """The run facet ``perennial`` of a step.

    ``facts`` are the small values that its manifest holds: verdict, version, outcome, counts. ``key`` is the identity
    of the work, ``manifestSha256`` what was written of it, both None where nothing was made.
    """

    case: str
    step: str
    asOf: str | None = None  # noqa: N815 - OpenLineage's spelling
    key: str | None = None
    manifestSha256: str | None = None  # noqa: N815
    facts: dict[str, Any] = field(factory=dict)

    _additional_skip_redact = ["case", "step", "asOf", "key", "manifestSha256"]  # noqa: RUF012 - OpenLineage's


def begun(step: Step | Action, case: str) -> OperatorLineage[Any, Any]:
    """What is known when a task begins: what it will use. What it makes is known when it has."""
    return OperatorLineage(
        inputs=[InputDataset(*place(case, step.uses))] if step.uses else [],
        run_facets={"perennial": PerennialRunFacet(case=case, step=step.name)},
    )


def over(step: Step | Action, ended: Ended) -> OperatorLineage[Any, Any]:
    """What is known of a task that has ended: of one that failed, what it used."""
    made = ended.made
    told = PerennialRunFacet(
        case=ended.case,
        step=step.name,
        asOf=ended.as_of.isoformat(),
        key=None if made is None else made.key,
        manifestSha256=None if made is None else made.sha256,
        facts=small(dict(ended.facts)),
    )
    return OperatorLineage(
        inputs=[_input(ended, step.uses)] if step.uses else [],
        outputs=[_output(ended, step.makes)] if _makes(step, ended) else [],
        run_facets={"perennial": told},
    )


def place(case: str, kind: str) -> tuple[str, str]:
    """Namespace and name of a dataset of a case."""
    return f"perennial://{case}", kind


def _makes(step: Step | Action, ended: Ended) -> bool:
    """Whether the task made what its step makes; a candidate that is not promoted makes no release."""
    if step.makes == "release":
        return _release(ended) is not None
    return bool(step.makes) and ended.made is not None


def _release(ended: Ended) -> int | None:
    """The number of the release that this task made."""
    if ended.made is not None:
        found: int | None = ended.facts.get("seq")
        return found
    if ended.facts.get("changed"):
        release: dict[str, Any] = ended.facts["release"]
        return int(release["seq"])
    return None


def _input(ended: Ended, kind: str) -> InputDataset:
    return InputDataset(*place(ended.case, kind), facets=_facets(ended, kind, _version(ended, kind)))


def _output(ended: Ended, kind: str) -> OutputDataset:
    version = str(_release(ended)) if kind == "release" else _version(ended, kind)
    counted: dict[str, OutputDatasetFacet] = {}
    if kind in ROWS:
        facts = ended.facts
        rows = facts["rows"] if kind == "data" else facts["train_rows"] + facts["holdout_rows"]
        counted["outputStatistics"] = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
    return OutputDataset(*place(ended.case, kind), facets=_facets(ended, kind, version), outputFacets=counted)


def _facets(ended: Ended, kind: str, version: str | None) -> dict[str, DatasetFacet]:
    found: dict[str, DatasetFacet] = {}
    if version is not None:
        found["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)
    if kind in ROWS:
        from pipelines.cases import load_fields

        columns = [
            schema_dataset.SchemaDatasetFacetFields(name=one.name, type=type(one).__name__)
            for one in load_fields(ended.case).fields
        ]
        found["schema"] = schema_dataset.SchemaDatasetFacet(fields=columns)
    return found


def _version(ended: Ended, kind: str) -> str | None:
    """The version of a dataset in this run: the hash of its manifest, or the model's number. None: it is not of it."""
    maker = {step.makes: step for step in (INGEST, DATASET, REGISTER, ROLLOUT)}[kind]
    manifest = _manifest(ended.settings.run_dir(ended.case, ended.as_of) / maker.name)
    if manifest is None:
        return None
    if kind == "model":
        return str(manifest.facts["version"])
    return manifest.sha256 or manifest.key


def _manifest(folder: Path) -> Manifest | None:
    """What a step left, here or, where another machine made it, in the store behind the state folder."""
    path = folder / MANIFEST
    if path.exists():
        return Manifest.model_validate_json(path.read_bytes())
    newest = objects.commits(folder)[-1:]
    return Manifest.model_validate_json(newest[0].manifest) if newest else None
