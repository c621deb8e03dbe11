"""`perennial tune`: measure ways to serve a case's champion on this machine, and propose its block `serving:`.

A Triton of its own serves the champion's file from a temporary folder, so that nothing that serves is touched. It is
asked as the gateway asks: rows of the holdout, encoded, one a request, those that wait together in the next call.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embedded import triton
from embedded.ports import Ports
from embedded.processes import end
from embedded.tune import grid, load, written
from pipelines import ledger, objects, storage
from pipelines.cases import load_fields
from pipelines.contracts import Release
from pipelines.deploy import repository, rollout
from pipelines.deploy import triton as calls
from pipelines.errors import ConfigError, IntegrityError, PerennialError
from pipelines.fields import Fields
from pipelines.params import ServingParams
from pipelines.params_file import load_params, params_file
from pipelines.places import PRIVATE
from pipelines.processes import birth
from pipelines.settings import Settings, read_settings
from serving.gateway import versions

ROWS = 256
"""So many rows of the holdout are asked for, over and over."""
SECONDS, ROUNDS, WORKERS = 2.0, 3, 2
WIDE = 160
FOLDER, OWNER = "perennial-tune-", "owner"
"""What folders of measurements are called, and the file there that names the process."""
Say = Callable[[str], None]


def main(arguments: list[str] | None = None, prog: str = "python -m embedded.tune") -> int:
    """Measure, print a table and the block; exit code 0, or the error's own."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--case", required=True)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each measurement (default {SECONDS:g})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often all is measured (default {ROUNDS})")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help=f"workers of gateways that ask at a time (default {WORKERS})"
    )
    parser.add_argument("--write", action="store_true", help="put the block into the case's params.yaml")
    options = parser.parse_args(arguments)
    for name in ("seconds", "rounds", "workers"):
        if not 0 < getattr(options, name) <= 600:
            parser.error(f"--{name} {getattr(options, name):g} is not above 0 and at most 600")
    os.umask(PRIVATE)
    # A plain kill must stop Triton too: turn it into the exception that ends the with-blocks in order.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # Into a file or a pipe a table is as wide as it needs to be.
    console = Console(soft_wrap=True) if sys.stdout.isatty() else Console(soft_wrap=True, width=WIDE)
    try:
        _tune(options, console)
    except PerennialError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; nothing was changed", file=sys.stderr)
        return 130
    return 0


def _tune(options: argparse.Namespace, console: Console) -> None:
    settings = read_settings()
    objects.attach(settings)
    params, fields = load_params(options.case), load_fields(options.case)
    tried = grid.tried(params.serving)
    took = len(tried) * options.rounds * (len(grid.CLIENTS) * (options.seconds + load.WARM_SECONDS) + 2)
    console.print(f"{len(tried)} ways to serve {options.case}, {options.rounds} rounds: some {took / 60:.1f} minutes")
    found = measured(
        settings,
        fields,
        tried,
        seconds=options.seconds,
        rounds=options.rounds,
        workers=options.workers,
        say=lambda line: console.print(f"  {escape(line)}"),
    )
    judgement = grid.judge(found)
    serving = grid.proposed(judgement.chosen, params.serving)
    block = grid.block(serving)
    console.print(table(judgement))
    console.print(reasons(judgement))
    console.print(escape(yaml.safe_dump({"serving": block}, sort_keys=False, default_flow_style=None)))
    path = params_file(options.case, settings)
    if options.write:
        written.write(path, params, serving, block)
        console.print(f"written to {path}: gateways follow within seconds, Triton at the next reconcile")
    else:
        console.print(f"--write puts it into {path}")


def measured(
    settings: Settings,
    fields: Fields,
    tried: Sequence[ServingParams],
    *,
    seconds: float,
    rounds: int,
    workers: int,
    say: Say,
    clients: Sequence[int] = grid.CLIENTS,
) -> list[grid.Tried]:
    """What the ways to serve the case's champion come to, on a Triton of its own; the rounds take turns.

    Raises ConfigError if there is no champion or no Triton can run here, and what keeps the champion from being served.
    """
    release = ledger.head(settings.ledger, fields.case)
    if release is None:
        raise ConfigError(f"{fields.case} has no champion yet: run its training (DAG {fields.case}_training) first")
    rows = rows_of(settings, fields, release)
    triton.bring(say)
    points = [defaultdict[int, list[grid.Point]](list) for _ in tried]
    sweep()
    with tempfile.TemporaryDirectory(prefix=FOLDER) as folder:
        home, ports = Path(folder), Ports.free()
        (home / OWNER).write_text(f"{os.getpid()} {birth(os.getpid())}")
        with triton.triton(home, ports), load.workers(fields.case, rows, workers) as pool:
            own = triton.settings(home, ports)
            target = load.Target(own.address("triton_grpc"), own.triton_client, release.champion)
            repository.stage(own.model_repository, fields.case, release.champion, rollout.bundle_of(settings, release))
            for number in range(rounds):
                for serving, its in zip(tried, points, strict=True):
                    _serve(own, fields, release.champion, serving)
                    load.measure(pool, target, max(clients), load.WARM_SECONDS, count=workers)  # the first are slow
                    said = list[str]()
                    for count in clients:
                        its[count].append(load.measure(pool, target, count, seconds, count=workers))
                        said.append(f"{its[count][-1].rate:,.0f}/s at {count}")
                    say(f"round {number + 1}, {grid.name(serving)}: {', '.join(said)}")
    return [grid.Tried(serving, dict(its)) for serving, its in zip(tried, points, strict=True)]


def sweep() -> None:
    """End the Tritons of measurements that were killed, and remove their folders."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER}*"):
        try:
            pid, born = map(int, (folder / OWNER).read_text().split())
        except (OSError, ValueError):  # somebody else's, or just being made
            continue
        if birth(pid) != born:
            end([], triton.stack_tag(folder))
            triton.sweep(folder)
            shutil.rmtree(folder, ignore_errors=True)


def rows_of(settings: Settings, fields: Fields, release: Release) -> load.Rows:
    """Rows of the holdout that the release was judged on (of its training rows if that is empty), encoded one by one.

    Raises Unavailable if its bundle cannot be used with ``fields``, IntegrityError if there are no rows.
    """
    import polars as pl

    version = versions.load(settings.root, fields, release)
    bundle = rollout.bundle_of(settings, release)
    key = json.loads((bundle / "bundle.json").read_text())["dataset_key"]
    dataset = storage.find(bundle.parent / "dataset", key)
    for part in ("holdout", "train"):
        rows = pl.read_parquet(dataset / f"{part}.parquet", columns=list(fields.reads), n_rows=ROWS)
        if rows.height:
            columns = [{name: [value] for name, value in row.items()} for row in rows.iter_rows(named=True)]
            return asyncio.run(_encoded(version, columns))
    raise IntegrityError(f"{dataset} has no rows to ask for: move it away and run the step 'dataset' again")


async def _encoded(version: versions.Version, rows: Sequence[dict[str, list[object]]]) -> load.Rows:
    return [await version.parts(row) for row in rows]


def _serve(settings: Settings, fields: Fields, version: int, serving: ServingParams) -> None:
    """Have the Triton serve it so, on the CPU where it has no GPU for it."""
    repository.configure(settings.model_repository, fields, [version], serving)
    try:
        calls.load(settings, fields.case)
    except IntegrityError:
        if serving.device == "cpu":
            raise
        repository.configure(settings.model_repository, fields, [version], repository.on_cpu(serving))
        calls.load(settings, fields.case)


def table(judgement: grid.Judgement) -> Table:
    """The ways to serve beside the simplest: ratios, latencies (ms), and what is said of each."""
    counts = list(judgement.all[0].rates)
    most = max(counts)
    drawn = Table(box=None, pad_edge=False)
    drawn.add_column("served with", no_wrap=True)
    for heading in (*(f"x req/s at {count}" for count in counts), f"x p50 at {min(counts)}", f"p95, p99 at {most}"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("", no_wrap=True)
    for one in judgement.all:
        drawn.add_row(
            grid.name(one.tried.serving),
            *(f"{one.rates[count]:.2f}" for count in counts),
            f"{one.alone:.2f}",
            f"{one.tried.of(most, 'p95'):.1f}, {one.tried.of(most, 'p99'):.1f}",
            f"{one.said}{', proposed' if one.tried is judgement.chosen else ''}",
        )
    return drawn


def reasons(judgement: grid.Judgement) -> str:
    """Why it is that one, and where its promises come from."""
    chosen, base, most = judgement.chosen, judgement.all[0].tried, max(judgement.all[0].rates)
    why = "nothing is faster than the simplest by more than that"
    if chosen is not base:
        why = "of what is as fast within that, it is the simplest"
    promises = (
        f"The SLO is {grid.MARGIN:g} times what was measured at {most} clients and {grid.GATEWAY_MS:g} ms for the "
        f"gateway, the deadline {grid.DEADLINE:g} times its p99, {grid.LEAST_DEADLINE_SECONDS:g} s at least."
    )
    return (
        f"Ratios are to {grid.name(base.serving)}, {base.of(most, 'rate'):,.0f} requests/s at {most} clients; they "
        f"differ by {judgement.noise:.0%} from round to round. Proposed: {grid.name(chosen.serving)}; {why}. {promises}"
    )


if __name__ == "__main__":
    sys.exit(main())
