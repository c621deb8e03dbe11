"""One measurement of bench_drift in a process of its own.

``python -m benchmarks.bench.drift_arms '<JSON>'`` prints one line of JSON. Given ``{arm, paths, reference, threads}``;
answered ``{compute, cpu, peak_mb, rows, answer, versions}``: wall and CPU seconds of the work itself, imports left out,
and the most memory the process ever had. Each arm imports what it needs before its clock starts, so the same file
serves the environments of all peers.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

NUMBERS = tuple(f"n{number:02d}" for number in range(30))
CATEGORIES = tuple(f"c{number:02d}" for number in range(10))
BATCH = 250_000
SERVED = "2021-05-03T00:00:00+00:00"
"""The day that the profile step is measured on."""
Answer = dict[str, Any]


def vocabulary(category: int) -> tuple[str, ...]:
    """The values of the n-th categorical column: 4 to 22 of them."""
    return tuple(f"value {value}" for value in range(4 + 2 * category))


def main() -> None:
    """Measure one arm and print what was found."""
    given = json.loads(sys.argv[1])
    arm = ARMS[given["arm"]]
    paths = [Path(path) for path in given["paths"]]
    for name in arm[1]:
        importlib.import_module(name)
    work: Callable[[], Answer] = arm[0](paths, Path(given["reference"]), given["threads"])
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.perf_counter()
    answer = work()
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    versions = {
        name.partition(".")[0]: metadata.version(name.partition(".")[0])
        for name in arm[1]
        if not name.startswith("pipelines")
    }
    print(json.dumps({"compute": seconds, "cpu": cpu, "peak_mb": _peak_mb(), "answer": answer, "versions": versions}))


def _peak_mb() -> float:
    """The most memory this process had.

    Not ``ru_maxrss``, which Linux begins with the peak of the process that started this one.
    """
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(peak.split()[1]) / 1024


# --- the arms: (paths, reference, threads) -> the work, whose call alone is timed -------------------------------------


def scan_groups(paths: list[Path], _reference: Path, threads: int) -> Callable[[], Answer]:
    """The bare scan: every row group decoded as a table, categories as dictionaries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(threads)

    def work() -> Answer:
        rows = 0
        for path in paths:
            file = pq.ParquetFile(path, read_dictionary=_categories(path), pre_buffer=False)
            for group in range(file.num_row_groups):
                rows += file.read_row_group(group).num_rows
        return {"rows": rows}

    return work


def scan_batches(paths: list[Path], _reference: Path, threads: int) -> Callable[[], Answer]:
    """The bare scan in record batches, categories as dictionaries."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pa.set_cpu_count(threads)

    def work() -> Answer:
        rows = 0
        for path in paths:
            for batch in pq.ParquetFile(path, read_dictionary=_categories(path), pre_buffer=False).iter_batches(
                batch_size=BATCH
            ):
                rows += batch.num_rows
        return {"rows": rows}

    return work


def _categories(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    return [name for name in pq.read_schema(path).names if name.startswith("c")]


def ours(paths: list[Path], reference: Path, threads: int) -> Callable[[], Answer]:
    """Perennial: the profile, then PSI, KS, Jensen-Shannon, KL, Wasserstein and chi-square.

    With them the test of every feature.
    """
    import pyarrow as pa

    from pipelines.drift.inputs.compare import compare
    from pipelines.drift.profile.counts import read
    from pipelines.drift.profile.kernel import profile_parquet
    from pipelines.drift.profile.spec import Spec
    from pipelines.fields import Categorical, Fields, Numeric, Scale
    from pipelines.params_file import load_params

    pa.set_cpu_count(threads)
    names = {name for path in paths[:1] for name in _names(path)}
    numbers = [name for name in NUMBERS if name in names]
    categories = [Categorical(name, vocabulary(number)) for number, name in enumerate(CATEGORIES) if name in names]
    fields = Fields("bench", (*(Numeric(name) for name in numbers), *categories), "label")
    spec = Spec(
        "bench",
        {
            **{name: Scale(*scale) for name, scale in json.loads(reference.with_suffix(".json").read_text()).items()},
            "score": Scale(0.0, 1.0),
        },
    )
    params = load_params("loans").drift

    def work() -> Answer:
        current = profile_parquet(paths, fields, spec, threads)
        found = compare(read(reference.with_suffix(".profile")), current, fields, spec, params)
        return {
            "rows": current.rows,
            "psi": {one.feature: one.psi for one in found},
            "ks": {one.feature: one.ks for one in found if one.ks is not None},
        }

    return work


def _names(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    found: list[str] = pq.read_schema(path).names
    return found


def scipy(paths: list[Path], reference: Path, _threads: int) -> Callable[[], Answer]:
    """Numpy and scipy on whole columns: PSI on the reference's deciles, ks_2samp, chi2_contingency."""
    import numpy as np
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
    from scipy import stats

    def psi(one: Any, other: Any) -> float:
        p, q = (
            (counts + 0.5) / (counts.sum() + 0.5 * len(counts))
            for counts in (np.asarray(one, float), np.asarray(other, float))
        )
        return float(((q - p) * np.log(q / p)).sum())

    def counted(table: Any, name: str) -> dict[str, int]:
        return {row["values"]: row["counts"] for row in pc.value_counts(table[name]).to_pylist()}

    def work() -> Answer:
        before = pq.read_table(reference)
        now = pq.read_table(paths[0])
        found: dict[str, dict[str, float]] = {"psi": {}, "ks": {}}
        for name in NUMBERS:
            a = before[name].to_numpy()
            b = now[name].to_numpy()
            edges = np.unique(np.quantile(a, np.arange(1, 10) / 10))
            found["psi"][name] = psi(
                *(
                    np.bincount(np.searchsorted(edges, values, side="left"), minlength=len(edges) + 1)
                    for values in (a, b)
                )
            )
            found["ks"][name] = float(stats.ks_2samp(a, b, method="asymp").statistic)
        for name in CATEGORIES:
            one = counted(before, name)
            other = counted(now, name)
            both = [[counts.get(value, 0) for value in sorted({*one, *other})] for counts in (one, other)]
            found["psi"][name] = psi(*both)
            stats.chi2_contingency(np.array(both))
        return {"rows": now.num_rows, **found}

    return work


def _evidently(method: str, categorical: str) -> Callable[[list[Path], Path, int], Callable[[], Answer]]:
    def arm(paths: list[Path], reference: Path, _threads: int) -> Callable[[], Answer]:
        import pandas as pd
        from evidently import DataDefinition, Dataset, Report
        from evidently.presets import DataDriftPreset

        # Its compute alone: the frames are read before the clock starts.
        definition = DataDefinition(numerical_columns=list(NUMBERS), categorical_columns=list(CATEGORIES))
        now, before = (Dataset.from_pandas(pd.read_parquet(path), definition) for path in (paths[0], reference))

        def work() -> Answer:
            made = Report([DataDriftPreset(num_method=method, cat_method=categorical)]).run(now, before)
            found = {
                metric["config"]["column"]: float(metric["value"])
                for metric in made.dict()["metrics"]
                if "ValueDrift" in metric["metric_name"]
            }
            return {"rows": len(now.as_dataframe()), method: found}

        return work

    return arm


def nannyml(paths: list[Path], reference: Path, _threads: int) -> Callable[[], Answer]:
    """NannyML's univariate drift: Kolmogorov-Smirnov and chi-square, in ten chunks.

    The frames are read before the clock starts.
    """
    import nannyml as nml
    import pandas as pd

    now, before = (pd.read_parquet(path) for path in (paths[0], reference))

    def work() -> Answer:
        calculator = nml.UnivariateDriftCalculator(
            column_names=[*NUMBERS, *CATEGORIES],
            treat_as_categorical=list(CATEGORIES),
            continuous_methods=["kolmogorov_smirnov"],
            categorical_methods=["chi2"],
            chunk_size=max(1, len(now) // 10),
        )
        calculator.fit(before)
        return {"rows": len(now), "chunks": len(calculator.calculate(now).to_df())}

    return work


def merge_hours(paths: list[Path], _reference: Path, _threads: int) -> Callable[[], Answer]:
    """Profiles of hours, read from their files and added up."""
    from pipelines.drift.profile.counts import merge, read

    def work() -> Answer:
        began = time.perf_counter()
        found = [read(path) for path in paths]
        reading = time.perf_counter() - began
        return {
            "rows": merge(found, "bench").rows,
            "reading": reading,
            "merging": time.perf_counter() - began - reading,
        }

    return work


def _step(together: int | None) -> Callable[[list[Path], Path, int], Callable[[], Answer]]:
    def arm(paths: list[Path], _reference: Path, _threads: int) -> Callable[[], Answer]:
        from pipelines.data import day_rows
        from pipelines.line import runner
        from pipelines.line.order import PROFILE
        from pipelines.line.step import Run
        from pipelines.params_file import load_params
        from pipelines.settings import read_settings

        params = load_params("loans")
        settings = read_settings(home=paths[0])
        day_rows.TOGETHER = together or day_rows.TOGETHER

        def work() -> Answer:
            as_of = datetime.fromisoformat(SERVED) + timedelta(days=1)
            made = runner.run(PROFILE, Run(params, settings, as_of, paths[0] / f"run-{together}"))
            return {"rows": made.facts["rows"], "key": made.key}

        return work

    return arm


ARMS: dict[str, tuple[Callable[[list[Path], Path, int], Callable[[], Answer]], tuple[str, ...]]] = {
    "scan, row groups": (scan_groups, ("pyarrow.parquet",)),
    "scan, batches": (scan_batches, ("pyarrow.parquet",)),
    "ours": (
        ours,
        ("pipelines.drift.inputs.compare", "pipelines.drift.profile.kernel", "pyarrow.parquet", "scipy.stats"),
    ),
    "scipy + numpy": (scipy, ("pyarrow.parquet", "pyarrow.compute", "pandas", "scipy.stats")),
    "Evidently psi": (_evidently("psi", "psi"), ("evidently", "pandas")),
    "Evidently ks": (_evidently("ks", "chisquare"), ("evidently", "pandas")),
    "NannyML ks": (nannyml, ("nannyml", "pandas")),
    "profile step": (_step(None), ("pipelines.steps.profile",)),
    "profile step, in frames": (_step(1 << 60), ("pipelines.steps.profile",)),
    "merge": (merge_hours, ("pipelines.drift.profile.counts",)),
}


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # Arrow's threads may still be ending, and have aborted interpreters that ended before them
