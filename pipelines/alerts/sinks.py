"""The sinks: where notices go.

A sink either delivers or raises Undelivered; what to do then is the caller's business.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from pipelines.contracts import Notice
from pipelines.errors import Unavailable
from pipelines.params import AlertParams
from pipelines.settings import Settings
from pipelines.storage import canonical_json

TIMEOUT_SECONDS = 5.0
PAUSES = (0.5, 1.0, 2.0)
"""Seconds before the second, third and fourth try of a message."""
LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.ERROR}
Sink = Callable[[Notice], None]

log = logging.getLogger(__name__)


class Undelivered(Unavailable):
    """A sink did not take a notice; the message never holds the sink's address."""


def text(notice: Notice, params: AlertParams) -> str:
    """What people read, in Slack's simple markup.

    What, since when, whose business it is, how soon, and where it says what to do.
    """
    severity = notice.severity.upper()
    word = {"opened": severity, "raised": f"NOW {severity}", "resolved": "RESOLVED"}[notice.kind]
    lines = [f"*{word}* {notice.case}: {notice.group}"]
    for alert in notice.alerts:
        told = f"- {alert.rule}: {alert.summary}"
        if notice.kind == "resolved":
            lines.append(
                f"{told} (first seen {alert.first_seen:%Y-%m-%d %H:%M}, found {alert.count} times, "
                f"last {alert.last_seen:%Y-%m-%d %H:%M} UTC)"
            )
        else:
            lines.append(f"{told} (since {alert.first_seen:%Y-%m-%d %H:%M} UTC; {alert.owner}; {alert.runbook})")
    if notice.kind != "resolved":
        hours = params.response_hours.get(notice.severity, 0.0)
        soon = f"{hours:g} h" if hours < 48 else f"{hours / 24:g} days"
        lines.append(f"Somebody should look within {soon}.")
    return "\n".join(lines)


def to_log(notice: Notice) -> None:
    """One line of JSON in the log, at the level of its severity."""
    level = logging.INFO if notice.kind == "resolved" else LEVELS[notice.severity]
    log.log(level, "alert %s", canonical_json(notice))


def webhook(url: str, params: AlertParams, pause: Callable[[float], None] = time.sleep) -> Sink:
    """POST ``{"text": ...}`` to ``url``.

    Anything but 2xx is tried again after the pauses, but a 4xx that will not change its mind is not.
    """

    def send(notice: Notice) -> None:
        import httpx

        body = {"text": text(notice, params)}
        why = ""
        for wait in (*PAUSES, None):
            try:
                answer = httpx.post(url, json=body, timeout=TIMEOUT_SECONDS)
                if answer.is_success:
                    return
                why = f"HTTP {answer.status_code}"
                if answer.is_client_error and answer.status_code not in {
                    httpx.codes.REQUEST_TIMEOUT,
                    httpx.codes.TOO_MANY_REQUESTS,
                }:
                    break
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                why = type(error).__name__  # its text may hold the address, which is a secret
            if wait is not None:
                pause(wait)
        raise Undelivered(f"the webhook did not take the notice: {why}; check PERENNIAL_ALERT_WEBHOOK and its receiver")

    return send


def mail(where: str, params: AlertParams) -> Sink:
    """Send by SMTP; ``where`` is ``smtp://host:port/sender/recipient``."""

    def send(notice: Notice) -> None:
        import smtplib
        from email.message import EmailMessage

        parts = urlsplit(where)
        people = parts.path.strip("/").split("/")
        if parts.scheme != "smtp" or parts.hostname is None or len(people) != 2:
            raise Undelivered(
                "PERENNIAL_ALERT_MAIL is no address: "
                "write it like smtp://mail.example.org:25/perennial@example.org/ml@example.org"
            )
        message = EmailMessage()
        body = text(notice, params)
        message["From"], message["To"], message["Subject"] = *people, body.partition("\n")[0].replace("*", "")
        message.set_content(body)
        try:
            with smtplib.SMTP(parts.hostname, parts.port or 25, timeout=TIMEOUT_SECONDS) as server:
                server.send_message(message)
        except (OSError, smtplib.SMTPException) as error:
            raise Undelivered(
                f"the mail server did not take the notice: {type(error).__name__}; check PERENNIAL_ALERT_MAIL and its "
                "server"
            ) from error

    return send


def configured(settings: Settings, params: AlertParams) -> dict[str, Sink]:
    """The sinks that the environment names; the log is always one."""
    found: dict[str, Sink] = {"log": to_log}
    if settings.alert_webhook is not None and settings.alert_webhook.get_secret_value():
        found["webhook"] = webhook(settings.alert_webhook.get_secret_value(), params)
    if settings.alert_mail:
        found["mail"] = mail(settings.alert_mail, params)
    return found
