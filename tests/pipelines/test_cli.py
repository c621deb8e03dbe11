"""pipelines/cli: one line of JSON for programs, clear words for people, an exit code for both."""

import argparse
import io
import json
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipelines import cli, ledger
from pipelines.case_files import case_names
from pipelines.cli.commands import COMMANDS, Command
from pipelines.cli.options import parse_as_of
from pipelines.contracts import Manifest
from pipelines.line import order
from pipelines.params_file import load_params
from tests.pipelines.alerts import found


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty state folder, set as the environment sets it."""
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    monkeypatch.delenv("PERENNIAL_DATA_DIR", raising=False)
    return tmp_path


def test_a_step_answers_with_one_json_line(home: Path, capfd: pytest.CaptureFixture[str]):
    """Stdout is one JSON object naming manifest, key and facts; a second run gives the very same line."""
    arguments = ["ingest", "--case", "loans", "--as-of", "2020-05-01"]
    assert cli.main(arguments) == 0
    first = capfd.readouterr().out
    answer = json.loads(first)
    assert first.count("\n") == 1
    assert Path(answer["manifest"]) == home / "artefacts" / "loans" / "20200501T000000Z" / "ingest" / "manifest.json"
    assert json.loads(Path(answer["manifest"]).read_text())["key"] == answer["key"]
    assert answer["facts"]["origin"] == "source"
    assert cli.main(arguments) == 0
    assert capfd.readouterr().out == first


def _into(stdout: int) -> subprocess.CompletedProcess[str]:
    """The history, told into this file descriptor."""
    command = [sys.executable, "-m", "pipelines", "history", "--case", "loans"]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)


def test_an_answer_that_nobody_reads_or_no_disk_takes():
    """A reader that has gone, as `head` does, is no error; a full disk is one clear line. Neither is a traceback."""
    read, write = os.pipe()
    os.close(read)
    full = os.open("/dev/full", os.O_WRONLY)
    unread = _into(write)
    unwritten = _into(full)
    os.close(write)
    os.close(full)
    assert (unread.returncode, unread.stderr) == (0, "")
    assert unwritten.returncode == 1
    assert unwritten.stderr.startswith("the answer of history cannot be written to stdout")
    assert unwritten.stderr.count("\n") == 1


def test_what_a_library_prints_stays_off_stdout(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """A chatty library ends up on stderr, so that stdout stays one line."""
    original = cli.runner.run

    def chatty(step, run):
        print("hello from a library")  # noqa: T201
        return original(step, run)

    monkeypatch.setattr(cli.runner, "run", chatty)
    assert cli.main(["ingest", "--case", "loans", "--as-of", "2020-05-01"]) == 0
    out, err = capfd.readouterr()
    assert "hello" in err
    json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["validate", "--case", "loans", "--as-of", "2020-05-01"], 2, "run the step 'ingest' first"),
        (["ingest", "--case", "loan", "--as-of", "2020-05-01"], 2, "did you mean 'loans'?"),
        (["ingest", "--case", "loans", "--as-of", "2019-05-01"], 1, "has no rows before 2019-05-01"),
    ],
)
def test_an_error_is_one_clear_line(arguments: list[str], code: int, words: str, capfd: pytest.CaptureFixture[str]):
    """A known error is one line without a traceback, on stderr, and the exit code tells settings from data."""
    assert cli.main(arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_debug_shows_the_traceback(capfd: pytest.CaptureFixture[str]):
    """With --debug the traceback is there too."""
    assert cli.main(["validate", "--case", "loans", "--as-of", "2020-05-01", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


def test_an_error_nobody_foresaw_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """A bug ends with 1 and says that it is one, and how to see more."""

    def broken(_step, _run):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(cli.runner, "run", broken)
    assert cli.main(["ingest", "--case", "loans", "--as-of", "2020-05-01"]) == 1
    assert (
        "ZeroDivisionError: by zero; this is a mistake in the program: run again with --debug" in capfd.readouterr().err
    )


def test_a_wrong_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """A setting that cannot be read is named as it stands in the environment."""
    monkeypatch.setenv("PERENNIAL_LOG_SEGMENT_SECONDS", "soon")
    assert cli.main(["ingest", "--case", "loans", "--as-of", "2020-05-01"]) == 2
    assert "PERENNIAL_LOG_SEGMENT_SECONDS" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2009-05-01", datetime(2009, 5, 1, tzinfo=UTC)),
        ("2009-05-01T02:00:00", datetime(2009, 5, 1, 2, tzinfo=UTC)),
        ("2009-05-01T02:00:00Z", datetime(2009, 5, 1, 2, tzinfo=UTC)),
        ("2009-05-01T02:00:00+02:00", datetime(2009, 5, 1, tzinfo=UTC)),
    ],
)
def test_dates_and_times_are_instants(text: str, expected: datetime):
    """A date is its midnight, a time without a zone is meant in UTC."""
    assert parse_as_of(text) == expected


@pytest.mark.parametrize("text", ["yesterday", "2009-13-01", "2009-05-01T02:00:00.5"])
def test_other_texts_are_no_clock(text: str):
    """What is no whole second in time is refused, with the text and what to write."""
    with pytest.raises(argparse.ArgumentTypeError, match=text[:10]):
        parse_as_of(text)


@pytest.mark.parametrize(
    "arguments",
    [[], ["ingest"], ["ingest", "--case", "loans"], ["nothing", "--case", "loans", "--as-of", "2020-05-01"]],
)
def test_wrong_usage_exits_with_two(arguments: list[str]):
    """A missing command, case or as_of is wrong usage."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2


def test_help_lists_the_steps_in_the_order_of_the_line(capfd: pytest.CaptureFixture[str]):
    """Every step there is has its line in the help, those of the training run in their order."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capfd.readouterr().out
    places = [re.search(rf"^ +{step.name}\s", text, re.MULTILINE) for step in order.ALL]
    assert None not in places
    assert places == sorted(places, key=lambda place: place.start())


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("gate --as-of 2020-05-01 --trigger drift", "gate --as-of 2020-05-01 --reason R"),
        ("train --as-of 2020-05-01 --reason R", "train --reason R"),
        ("rollback --reason R --from-version 3", "rollback --from-version 3"),
        ("release --reason R --version 3 --despite-verdict", "release --reason R"),
        ("reconcile", "reconcile --as-of 2020-05-01"),
    ],
)
def test_a_step_gets_the_options_that_it_declares(right: str, wrong: str):
    """What a step or an action takes are its options, what it needs must be given, and it has no others."""
    parser = cli.build_parser()
    assert parser.parse_args([*right.split(), "--case", "loans"]).command == right.partition(" ")[0]
    with pytest.raises(SystemExit):
        parser.parse_args([*wrong.split(), "--case", "loans"])


def test_commands_that_are_no_steps_get_params_and_settings(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """An entry of COMMANDS is a subcommand, and what it returns is the answer."""

    def count(params, settings):
        """How many letters."""
        return {"letters": len(params.case), "home": settings.root.name}

    monkeypatch.setitem(COMMANDS, "count", Command(count))
    assert cli.main(["count", "--case", "loans"]) == 0
    assert json.loads(capfd.readouterr().out)["letters"] == len(load_params("loans").case)


def _made(step, run, **facts):
    """What a step leaves."""
    about = {"step": step.name, "case": run.case, "as_of": run.as_of, "key": "k", "inputs": {}, "files": {}}
    return Manifest(**about, facts=facts, provenance={})


@pytest.mark.parametrize(
    ("given", "champion", "expected"),
    [([], None, "initial"), ([], "one", "manual"), (["--trigger", "drift"], None, "drift")],
)
def test_a_run_knows_what_started_it(
    given: list[str], champion: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
):
    """Without --trigger a run by hand is the initial one until the case has a champion, and manual from then on."""
    seen = []
    monkeypatch.setattr(ledger, "champion_before", lambda *_: champion)

    def run(step, asked):
        seen.append(asked.trigger)
        return _made(step, asked)

    monkeypatch.setattr(cli.runner, "run", run)
    assert cli.main(["gate", "--case", "loans", "--as-of", "2020-05-01", *given]) == 0
    assert seen == [expected]


def test_alerts_are_listed_and_silenced(home: Path, capfd: pytest.CaptureFixture[str]):
    """`silence` keeps who, until when and why, and refuses a rule that there is none of.

    `alerts` lists alerts and the silences in force.
    """
    url = f"sqlite:///{home / 'ledger.db'}"
    now = found.NOW
    ledger.append_alerts(url, case="loans", seq=1, as_of=now, alerts=[found.alert()], notices=[])
    assert (
        cli.main(
            [
                "silence",
                "--case",
                "loans",
                "--rule",
                "volume_out_of_band",
                "--until",
                "2020-07-01",
                "--reason",
                "campaign",
            ]
        )
        == 0
    )
    capfd.readouterr()
    assert cli.main(["alerts", "--case", "loans"]) == 0
    answer = json.loads(capfd.readouterr().out)
    assert [(one["rule"], one["state"], one["count"]) for one in answer["alerts"]] == [
        ("volume_out_of_band", "open", 1)
    ]
    assert [(one["rule"], one["until"][:10], one["reason"]) for one in answer["silences"]] == [
        ("volume_out_of_band", "2020-07-01", "campaign")
    ]
    with pytest.raises(SystemExit):
        cli.main(["silence", "--case", "loans", "--rule", "boredom", "--until", "2020-07-01", "--reason", "r"])


def plain(drawn: str) -> str:
    """What a terminal shows, without the codes for bold and the like, blanks put together."""
    return re.sub(r" +", " ", re.sub(r"\x1b\[[0-9;]*m", "", drawn))


def run_in_terminal(arguments: list[str], home: Path) -> tuple[int, str]:
    """What a command prints to a terminal of 120 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PERENNIAL_HOME": str(home), "COLUMNS": "120", "TERM": "xterm", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", *arguments],
        stdout=theirs,
        stderr=subprocess.PIPE,
        stdin=theirs,
        env=environment,
    )
    os.close(theirs)
    text = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the other end was closed: Linux says EIO
            break
        if not part:
            break
        text += part
    os.close(ours)
    process.communicate(timeout=60)
    return process.returncode, plain(text.decode())


def test_a_terminal_gets_tables_and_a_pipe_one_line(home: Path, tmp_path: Path):
    """The same step run at a terminal and into a pipe: a table with every value there, one line of JSON here.

    --json gives the line at the terminal too.
    """
    arguments = ["ingest", "--case", "loans", "--as-of", "2020-05-01"]
    code, drawn = run_in_terminal(arguments, home)
    piped = subprocess.run(
        [sys.executable, "-m", "pipelines", *arguments], capture_output=True, text=True, check=True, env={**os.environ}
    )
    answer = json.loads(piped.stdout)
    assert (code, piped.stdout.count("\n")) == (0, 1)
    assert "{" not in drawn
    assert re.search(r"^case +loans", drawn, re.MULTILINE)
    assert re.search(r"^facts\.origin +source", drawn, re.MULTILINE)
    assert f"key {answer['key'][:12]}..." in drawn
    assert f"12 of {len(answer['facts']['partitions'])} (--json has all)" in drawn
    code, line = run_in_terminal([*arguments, "--json"], home)
    assert (code, json.loads(line)) == (0, answer)


def test_a_terminal_of_few_characters_gets_its_tables(home: Path, monkeypatch: pytest.MonkeyPatch):
    """Where a terminal has no letter for somebody's text, a table with a question mark is better than none."""
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    monkeypatch.setenv("PERENNIAL_ACTOR", "Zo\u00eb")
    arguments = ["silence", "--case", "loans", "--rule", "champion_old", "--until", "2020-07-01", "--reason", "known"]
    code, drawn = run_in_terminal(arguments, home)
    assert (code, "actor" in drawn, "Zo?" in drawn) == (0, True, True), drawn


ANSWERS = {
    "retrain": {"case": "loans", "version": 3, "decision": "reject", "reason": "worse [urgent]", "champion": None},
    "reproduce": {
        "identical": False,
        "layers": [{"name": "head.weight", "equal": False}, {"name": "head.bias", "equal": True}],
        "loss": 0.123456789,
    },
    "metrics": {"file": "/somewhere/metrics.prom", "series": 12},
    "alerts": {"case": "loans", "alerts": [found.alert().model_dump(mode="json")], "silences": []},
    "silence": {"case": "loans", "rule": "labels_late", "until": "2020-07-01", "actor": "ada"},
    "one": {
        "case": "loans",
        "facts": {"rows": 5, "curve": list(range(20)), "nested": {"deep": True}},
        "repaired": ["staged version 1"],
    },
}


@pytest.mark.parametrize("command", ANSWERS)
def test_every_answer_is_drawn_for_people(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """Whatever a command answers, a person sees its values by name, texts in brackets as they stand.

    Each list of objects is one table; programs see the JSON.
    """
    answer = ANSWERS[command]
    monkeypatch.setitem(COMMANDS, command, Command(lambda params, settings: answer))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    arguments = [command, "--case", "loans"]
    assert cli.main(arguments) == 0
    assert json.loads(capfd.readouterr().out) == answer
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(arguments) == 0
    drawn = plain(terminal.getvalue())
    words = {
        "retrain": ["decision reject", "worse [urgent]", "champion -"],
        "reproduce": ["identical no", "head.weight no", "head.bias yes", "0.123457"],
        "metrics": ["series 12"],
        "alerts": ["volume_out_of_band", "severity", "summary", "silences -"],
        "silence": ["rule labels_late"],
        "one": ["facts.rows 5", "facts.nested.deep yes", "(20 in all)", "staged version 1"],
    }
    assert [word for word in words[command] if word not in drawn] == []
    terminal.truncate(0)
    assert cli.main([*arguments, "--json"]) == 0
    assert json.loads(terminal.getvalue().lstrip("\0")) == answer


def test_metrics_are_written_for_all_cases_or_one(home: Path, capfd: pytest.CaptureFixture[str]):
    """`metrics` writes the file for a textfile collector: of all cases, or of one that is named."""
    for arguments, cases in (([], case_names()), (["--case", "bank"], ["bank"])):
        assert cli.main(["metrics", *arguments]) == 0
        answer = json.loads(capfd.readouterr().out)
        text = Path(answer["file"]).read_text()
        assert Path(answer["file"]) == home / "metrics.prom"
        assert sorted(set(re.findall(r'case="(\w+)"', text))) == cases
        assert answer["series"] == len(re.findall(r"^perennial_", text, re.MULTILINE))


def test_metrics_are_served_on_a_port(monkeypatch: pytest.MonkeyPatch):
    """With a port they are served there, on the loopback unless an address is given."""
    asked = []
    monkeypatch.setattr(
        "pipelines.reports.metrics.serve",
        lambda settings, cases, host, port: asked.append((len(cases()[0]), host, port)),
    )
    assert (
        cli.main(["metrics", "--port", "9188"])
        == cli.main(["metrics", "--case", "bank", "--port", "1", "--host", "0.0.0.0"])
        == 0
    )
    assert asked == [(len(case_names()), "127.0.0.1", 9188), (1, "0.0.0.0", 1)]


def test_retraining_by_hand_is_the_whole_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """`retrain` runs the steps of a training run in their order under the trigger manual, hands the reason on.

    It needs one.
    """
    seen = []
    monkeypatch.setattr(ledger, "champion_before", lambda *_: "one")
    facts = {
        "version": 3,
        "decision": "reject",
        "rule": "upper_bound",
        "reason": "worse",
        "outcome": "kept",
        "seq": None,
    }

    def run(step, asked):
        seen.append((step.name, asked.as_of.isoformat(), asked.trigger, asked.reason))
        return _made(step, asked, **facts)

    monkeypatch.setattr(cli.runner, "run", run)
    monkeypatch.setattr(cli.runner, "act", lambda action, *_: {"champion": 2} if action is order.RECONCILE else None)
    assert cli.main(["retrain", "--case", "loans", "--as-of", "2020-05-01", "--reason", "new branch opened"]) == 0
    names = [step.name for step in order.TRAINING[:-1]]
    assert seen == [(name, "2020-05-01T00:00:00+00:00", "manual", "new branch opened") for name in names]
    answer = json.loads(capfd.readouterr().out)
    assert (answer["version"], answer["decision"], answer["outcome"], answer["champion"]) == (3, "reject", "kept", 2)
    with pytest.raises(SystemExit):
        cli.main(["retrain", "--case", "loans", "--as-of", "2020-05-01"])


@pytest.mark.parametrize(("identical", "code"), [(True, 0), (False, 1)])
def test_an_answer_of_no_is_an_exit_code(
    identical: bool, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    """`reproduce` gets the version, prints its answer either way.

    It exits with 1 if the version was not reproduced.
    """
    seen = []

    def reproduce(settings, case, version):
        seen.append((case, version))
        return {"identical": identical}

    monkeypatch.setattr("pipelines.reproduction.retrain.reproduce", reproduce)
    assert cli.main(["reproduce", "--case", "loans", "--version", "7"]) == code
    assert json.loads(capfd.readouterr().out) == {"identical": identical}
    assert seen == [("loans", 7)]
    with pytest.raises(SystemExit):
        cli.main(["reproduce", "--case", "loans"])
