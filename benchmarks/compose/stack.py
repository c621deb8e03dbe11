"""`make test-compose`: docker-compose.yaml in real containers, from nothing, twice.

And the FAST demo in them against the embedded one.

    python -m benchmarks.compose.stack [--home DIR] [--quick]

Each round is a `git clone` of this commit, the second under umask 077: `make compose-up` on empty volumes, the first
champion, rows, labels and a drift run, logins and refusals, who reaches whom, users and read-only roots, SIGKILL of
each main process, a case from outside of the images, down and up again, PROFILES=celery, tear-down. Images are the
official ones where a registry answers, else stand-ins (engine.py). Writes benchmarks/results/compose.json; with --quick
the first round alone, and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.compose import checks
from benchmarks.compose import outside as outside_case
from benchmarks.compose.engine import ROOT, engine, images, said, world
from benchmarks.compose.replay import CASE
from benchmarks.full import demo as full_demo
from benchmarks.full.faults import until
from benchmarks.record import goal, record
from pipelines.errors import PerennialError, Unavailable
from pipelines.settings import read_settings

PROJECT = "perennial-test"
OURS = f"label=com.docker.compose.project={PROJECT}"
BUILT = "perennial/*"
"""The images that docker-compose.yaml builds."""
UMASKS = {"as usual": 0o022, "umask 077": 0o077}
REPLAY_SECONDS = 2400.0
IN_USE = "has active endpoints"
"""What an engine says of a network that it does not remove."""


def main() -> int:
    """Run it all; 0 if every goal holds."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compose.stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--home",
        type=Path,
        default=None,
        help="folder of engine, clones and states, which must not exist (default: a new one below /tmp)",
    )
    parser.add_argument("--quick", action="store_true", help="the first round alone; no result is written")
    options = parser.parse_args()
    home: Path = (options.home or Path(tempfile.mkdtemp(prefix="perennial-compose-")) / "home").resolve()
    home.mkdir(parents=True)
    home.chmod(0o755)
    began = time.monotonic()
    try:
        facts = in_containers(home, quick=options.quick)
    except PerennialError as error:
        print(f"make test-compose: {error}", file=sys.stderr)
        return error.exit_code
    facts["left"] = left(home, own=facts["engine"]["own"])
    print(f"torn down, left: {facts['left'] or 'nothing'}", flush=True)
    goals = judge(facts)
    rows = [
        {"round": name, **{key: found[key] for key in ("first_start_seconds", "start_again_seconds")}}
        for name, found in facts["rounds"].items()
    ]
    record("compose", rows=rows, goals=goals, seconds=time.monotonic() - began, more=facts, keep=not options.quick)
    if all(one["holds"] for one in goals):
        return 0
    return 1


def in_containers(home: Path, *, quick: bool) -> dict[str, Any]:
    """Both rounds and the demo, on one engine."""
    rounds = list(UMASKS.items())[: 1 if quick else None]
    with (
        engine(home / "engine") as (env, own),
        images(env, home / "standins", ROOT / ".venv", own=own) as kinds,
        world() if own else nullcontext() as outside,
    ):
        facts: dict[str, Any] = {"engine": versions(env, own=own), "images": kinds, "rounds": {}}
        for number, (name, umask) in enumerate(rounds):
            print(f"--- round {number + 1}: a clone made {name}", flush=True)
            with telling():
                facts["rounds"][name] = round_of(clone(home / f"clone{number}", umask), env, outside, own=own)
        if not quick:
            print("--- the FAST demo, in containers and embedded", flush=True)
            with telling():
                facts["demo"] = demo(home / "clone0", env, home / "embedded")
    return facts


@contextmanager
def telling() -> Iterator[None]:
    """Say at once what went wrong: removing an engine takes minutes, and a tear-down that fails hides why it came."""
    try:
        yield
    except PerennialError as error:
        if isinstance(error.__context__, PerennialError):
            print(f"failed: {error.__context__}", flush=True)
        print(f"failed, taking everything down: {error}", flush=True)
        raise


def versions(env: dict[str, str], *, own: bool) -> dict[str, Any]:
    """Of engine, Compose and builder."""
    server = said("docker", "version", "--format", "{{.Server.Version}}", env=env).strip()
    return {
        "server": server,
        "compose": said("docker", "compose", "version", "--short").strip(),
        "buildx": said("docker", "buildx", "version").split()[1],
        "own": own,
    }


def clone(folder: Path, umask: int) -> Path:
    """A `git clone` of this commit, its secrets and all that is made from here on under ``umask``."""
    os.umask(umask)
    said("git", "clone", "--quiet", ROOT, folder)
    return folder


def round_of(checkout: Path, env: dict[str, str], outside: str | None, *, own: bool) -> dict[str, Any]:
    """One life of the stack, from empty volumes to the tear-down."""
    cases = checkout.with_name(f"{checkout.name}-cases")
    cases.mkdir()
    cases.chmod(0o755)
    stack = checks.on_free_ports(checkout, {**env, outside_case.CASES: str(cases)}, PROJECT)
    facts: dict[str, Any] = {}

    def note(name: str, found: Any) -> Any:
        facts[name] = found
        shown = json.dumps(found)
        print(f"  {name}: {shown[:400]}{'...' if len(shown) > 400 else ''}", flush=True)
        return found

    try:
        note("first_start_seconds", round(checks.up(stack), 1))
        note("services", len(checks.containers(stack)))
        stack.airflow().wait_quiet([f"{CASE}_training", f"{CASE}_drift"], checks.RUN_SECONDS)
        note("at_birth", checks.ledger_of(stack))
        note("first_run_seconds", checks.first_run(stack))
        note("memory", checks.used(stack))
        note("served", checks.served(stack, "before"))
        note("drift_run", drifted(stack, "by_hand"))
        note("doors", checks.doors(stack))
        note("reach", checks.reach(stack, outside))
        note("held", checks.held(stack))
        note("prometheus", checks.targets(stack))
        note("killed", checks.killed(stack))
        note("served_after_kill", checks.served(stack, "after"))
        note("outside", outside_case.brought(stack, checkout.with_name(f"{checkout.name}-outside")))
        kept = note("ledger", checks.ledger_of(stack)), checks.logged(stack)
        compose_down = ("make", "--directory", checkout, "compose-down")
        note("kept_by_compose_down", taken_down(stack, lambda: said(*compose_down, env=stack.env)))
        note("start_again_seconds", round(checks.up(stack), 1))
        note("state_kept", kept == (checks.ledger_of(stack), checks.logged(stack)))
        note("outside_again", outside_case.answered(stack))
        note("celery_start_seconds", round(checks.up(stack, "celery"), 1))
        worker = checks.containers(stack)["airflow-worker"]["Config"]["Hostname"]
        note("celery_run", drifted(stack, "by_worker") | {"worker": worker})
        note("disk", disk(env))
        note("nameless_images", len(said("docker", "images", "--filter", "dangling=true", "--quiet", env=env).split()))
    finally:
        networks = taken_down(stack, lambda: stack.compose("down", "--volumes", "--timeout", "20"))
        if own:
            forget_images(env)
    note("kept_by_the_engine", networks)
    note("left", [one for one in of_project(env) if one not in networks])
    return facts


def taken_down(stack: checks.Stack, order: Callable[[], object]) -> list[str]:
    """Do ``order``, a tear-down; returns the networks that the engine keeps though no container is in them any more.

    Of a container that was killed an engine may count the endpoint for good, until it is started anew
    (https://github.com/moby/moby/issues/42119, seen with 20.10.24). Whatever else fails is raised.
    """
    try:
        order()
    except Unavailable as error:
        kept = said("docker", "network", "ls", "--filter", OURS, "--quiet", env=stack.env).split()
        users = [said("docker", "ps", "--all", "--quiet", "--filter", f"network={one}", env=stack.env) for one in kept]
        if IN_USE not in str(error) or any(users):
            raise
        with suppress(Unavailable):  # what the first try left when it came to the network
            order()
        return kept
    return []


def forget_images(env: dict[str, str]) -> None:
    """Remove the images that were built: the next round, from another checkout, begins without them.

    Built anew beside them, it would leave them behind without a name. On an engine of our own only: on another one they
    may be those of a stack that somebody uses.
    """
    built = said("docker", "images", "--filter", f"reference={BUILT}", "--quiet", env=env).split()
    if built:
        said("docker", "image", "rm", *sorted(set(built)), env=env)


def drifted(stack: checks.Stack, run_id: str) -> dict[str, Any]:
    """A drift run of now; the logs of tasks that failed are printed, as the containers do not outlive the round."""
    found = checks.drifted(stack, datetime.now(UTC).replace(microsecond=0), run_id)
    for task, log in found["failed"].items():
        print(f"  {task} failed:\n{log}", flush=True)
    return found


def of_project(env: dict[str, str]) -> list[str]:
    """Containers, networks and volumes of the project that are still there."""
    listed = (("ps", "--all"), ("network", "ls"), ("volume", "ls"))
    return [
        line for words in listed for line in said("docker", *words, "--filter", OURS, "--quiet", env=env).splitlines()
    ]


def disk(env: dict[str, str]) -> dict[str, str]:
    """What images, volumes and the build cache take."""
    lines = said("docker", "system", "df", "--format", "{{.Type}}: {{.Size}}", env=env).splitlines()
    return dict(line.split(": ", 1) for line in lines)


def demo(checkout: Path, env: dict[str, str], home: Path) -> dict[str, Any]:
    """The FAST demo of loans in containers, and the same embedded: what of the two is the same."""
    os.umask(0o022)
    limits = dict(word.split("=") for word in said("python3", "-m", "embedded.room", env=env).split())
    stack = checks.on_free_ports(
        checkout, {**env, **limits}, PROJECT, ("docker-compose.yaml", "benchmarks/compose/replay.yaml")
    )
    said("make", "--directory", checkout, "secrets", env=stack.env)
    try:
        stack.compose("up", "--detach", "--build", profiles="")
        began = time.monotonic()
        until(
            lambda: checks.containers(stack)["seed"]["State"]["Status"] == "exited",
            "the end of the demo",
            REPLAY_SECONDS,
        )
        seed = checks.containers(stack)["seed"]
        seconds = time.monotonic() - began
        if seed["State"]["ExitCode"]:
            raise Unavailable(
                f"the demo ended with an error:\n{stack.compose('logs', '--no-log-prefix', '--tail', '30', 'seed')}"
            )
        lines = said(
            "docker", "logs", seed["Id"], env=stack.env
        ).splitlines()  # Compose puts a terminal's codes before each
    finally:
        taken_down(stack, lambda: stack.compose("down", "--volumes", "--timeout", "20"))
    print("\n".join(lines[:-1]), flush=True)
    inside = json.loads(lines[-1])
    summary = full_demo.play(home, "embedded", CASE)
    return {
        "case": CASE,
        "seconds": {"containers": round(seconds, 1), "embedded": summary["seconds"]},
        **{
            name: {"containers": inside["summary"][name], "embedded": summary[name]}
            for name in ("rows_logged", "drift_runs", "verdicts", "errors")
        },
        "same": full_demo.compared(inside["taken"], full_demo.taken(read_settings(home=home), CASE)),
        "files_not_compared": full_demo.PROVENANCE,
    }


def left(home: Path, *, own: bool) -> list[str]:
    """What is still there of an engine of our ``own`` after the tear-down.

    Links, namespaces, packet filters, its folder; the whole folder goes with it.
    """
    found = []
    if own:
        found += [
            line.split()[0]
            for line in said("ip", "-brief", "link").splitlines()
            if line.startswith(("docker0", "br-", "veth", "perennial-out"))
        ]
        found += [name for name in said("ip", "netns", "list").split() if name.startswith("perennial")]
        found += ["packet filters"] if "DOCKER" in said("iptables-save") else []
        found += [f"the engine in {home}"] if (home / "engine").exists() else []
    shutil.rmtree(home, ignore_errors=True)
    return found


def judge(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold, round by round."""
    goals = []
    for name, found in facts["rounds"].items():
        doors = [one for one in found["doors"] if one["wanted"] != one["status"]]
        tasks = [found[run]["state"] != "success" for run in ("drift_run", "celery_run")]
        versions = found["served"]["versions"] == found["served_after_kill"]["versions"] == [1]
        rows = found["served_after_kill"]["logged"] - found["served"]["rows"] - found["served_after_kill"]["rows"]
        goals += [
            goal(f"{name}: first champions", len(found["at_birth"]["releases"]), 1, "higher"),
            goal(f"{name}: alerts of a new stack", len(found["at_birth"]["alerts"]), 0),
            goal(f"{name}: drift runs that were not green", sum(tasks), 0),
            goal(f"{name}: doors that answered otherwise", len(doors), 0),
            goal(f"{name}: pairs of services that reach each other otherwise", len(found["reach"]["wrong"]), 0),
            goal(f"{name}: containers with a right too many", len(found["held"]["wrong"]), 0),
            goal(f"{name}: rules of Prometheus with an error", len(found["prometheus"]["rules_not_ok"]), 0),
            goal(f"{name}: rows that a kill cost", -rows, 0),
            goal(
                f"{name}: versions that answered, before and after the kill, other than the first", int(not versions), 0
            ),
            goal(
                f"{name}: versions of a case from outside of the images, other than the first",
                int(not found["outside"]["versions"] == found["outside_again"] == [1]),
                0,
            ),
            goal(f"{name}: state lost by down and up", int(not found["state_kept"]), 0),
            goal(
                f"{name}: tasks that ran elsewhere than in the worker",
                len(set(found["celery_run"]["hosts"]) - {found["celery_run"]["worker"]}),
                0,
            ),
            goal(f"{name}: images without a name after its builds", found["nameless_images"], 0),
            goal(f"{name}: containers, networks, volumes left", len(found["left"]), 0),
        ]
    for kind, same in facts.get("demo", {}).get("same", {}).items():
        goals.append(goal(f"{kind} of the demo that differ from the embedded stack's", len(same["differ"]), 0))
    return [
        *goals,
        goal("parts of the engine left", len(facts["left"]), 0),
    ]


if __name__ == "__main__":
    sys.exit(main())
