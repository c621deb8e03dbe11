"""pipelines/alerts/sinks.py: what people get to read, and how often a sink is asked."""

import json
import logging
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from pydantic import SecretStr

from pipelines.alerts import sinks
from pipelines.settings import Settings
from tests.pipelines.alerts.found import ALERTS, DAY, NOW, notice
from tests.pipelines.conftest import free_port


@contextmanager
def receiver(*answers: int):
    """A webhook that gives these answers, the last one for good: ``(url, bodies it was sent)``."""
    bodies = []
    given = list(answers)
    lock = threading.Lock()

    class Take(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                bodies.append((self.headers["Content-Type"], json.loads(body)))
                code = given.pop(0) if len(given) > 1 else given[0]
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Take) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/services/T0/B0/secret", bodies
        server.shutdown()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_a_message_says_what_who_and_how_soon():
    """A message names case and group, each alert with its summary, owner and runbook.

    It also says how soon somebody should look.
    """
    assert sinks.text(notice(), ALERTS).splitlines() == [
        "*CRITICAL* loans: volume_out_of_band",
        "- volume_out_of_band: window is odd (since 2020-06-10 02:00 UTC; ada; docs#volume_out_of_band)",
        "Somebody should look within 1 h.",
    ]
    assert sinks.text(notice(kind="raised", severity="info"), ALERTS).splitlines()[0].startswith("*NOW INFO*")
    assert sinks.text(notice(severity="info"), ALERTS).splitlines()[-1] == "Somebody should look within 7 days."


def test_the_end_says_how_often_it_was_found():
    """A resolved notice tells from when to when an alert was found and how often, and asks for nothing."""
    found = sinks.text(notice(kind="resolved", count=168, last_seen=NOW + 7 * DAY), ALERTS)
    assert found.splitlines()[0] == "*RESOLVED* loans: volume_out_of_band"
    assert "first seen 2020-06-10 02:00, found 168 times, last 2020-06-17 02:00 UTC" in found
    assert "should look" not in found


def test_a_webhook_gets_slacks_json():
    """The webhook is sent one JSON object with the text, once."""
    with receiver(200) as (url, bodies):
        sinks.webhook(url, ALERTS)(notice())
    assert bodies == [("application/json", {"text": sinks.text(notice(), ALERTS)})]


def test_a_webhook_that_is_busy_is_asked_again():
    """Server errors and 429 are tried again after growing pauses, until it is taken."""
    pauses = []
    with receiver(500, 429, 200) as (url, bodies):
        sinks.webhook(url, ALERTS, pauses.append)(notice())
    assert (len(bodies), pauses) == (3, [0.5, 1.0])


@pytest.mark.parametrize(("answer", "tries"), [(503, 4), (404, 1), (302, 4)])
def test_a_webhook_that_does_not_take_it_is_undelivered(answer, tries):
    """After four tries, or at once where asking again cannot help, the notice is undelivered.

    The error does not hold the address.
    """
    with receiver(answer) as (url, bodies), pytest.raises(sinks.Undelivered, match=f"HTTP {answer}") as failed:
        sinks.webhook(url, ALERTS, lambda _: None)(notice())
    assert len(bodies) == tries
    assert "secret" not in str(failed.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/secret", "http://[secret", "ftp://secret/hook"])
def test_an_address_where_nobody_answers_is_undelivered(url):
    """A closed port and an address that is none are undelivered notices like any other.

    The address is not in their words.
    """
    with pytest.raises(sinks.Undelivered) as failed:
        sinks.webhook(url.format(port=free_port()), ALERTS, lambda _: None)(notice())
    assert "secret" not in str(failed.value)
    assert failed.value.__cause__ is None


def test_the_log_takes_everything(caplog):
    """The log gets the whole notice as one line of JSON, at the level of its severity.

    The end of an alert is information.
    """
    with caplog.at_level(logging.INFO, "pipelines.alerts.sinks"):
        for one in (notice(), notice(severity="warning"), notice(kind="resolved")):
            sinks.to_log(one)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "INFO"]
    assert (
        json.loads(caplog.records[0].getMessage().removeprefix("alert "))["alerts"][0]["rule"] == "volume_out_of_band"
    )


def test_mail_is_sent():
    """An SMTP server is handed a mail with the message's first line as subject.

    It is from and to those that the setting names.
    """
    lines = []

    class Take(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"220 here\r\n")
            body = False
            for raw in self.rfile:
                line = raw.decode().rstrip("\r\n")
                lines.append(line)
                if body:
                    body = line != "."
                    if not body:
                        self.wfile.write(b"250 taken\r\n")
                    continue
                body = line.lower() == "data"
                self.wfile.write({"data": b"354 go on\r\n", "quit": b"221 bye\r\n"}.get(line.lower(), b"250 yes\r\n"))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Take) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        sinks.mail(f"smtp://127.0.0.1:{server.server_address[1]}/loop@here/people@there", ALERTS)(notice())
        server.shutdown()
    assert {"mail FROM:<loop@here>", "rcpt TO:<people@there>", "Subject: CRITICAL loans: volume_out_of_band"} <= {
        line.partition(" size")[0] for line in lines
    }


@pytest.mark.parametrize(
    "where", ["mail.example.org", "smtp://host/only", "http://host:25/a/b", "smtp://127.0.0.1:{port}/a@b/c@d"]
)
def test_a_mail_server_that_is_not_there_is_undelivered(where):
    """A setting that is no address and a server that does not answer are undelivered notices.

    They are no errors of the loop.
    """
    with pytest.raises(sinks.Undelivered, match="PERENNIAL_ALERT_MAIL"):
        sinks.mail(where.format(port=free_port()), ALERTS)(notice())


def test_the_environment_names_the_sinks(monkeypatch):
    """The log is always a sink, webhook and mail are where they are set.

    Settings never show the webhook's address.
    """
    assert list(sinks.configured(Settings(alert_webhook=SecretStr("")), ALERTS)) == ["log"]
    monkeypatch.setenv("PERENNIAL_ALERT_WEBHOOK", "https://hooks/secret")
    monkeypatch.setenv("PERENNIAL_ALERT_MAIL", "smtp://h/a@b/c@d")
    settings = Settings()
    assert list(sinks.configured(settings, ALERTS)) == ["log", "webhook", "mail"]
    assert "secret" not in f"{settings!r} {settings.model_dump_json()}"
