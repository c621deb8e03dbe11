"""Where a declared source is told its address and login: a file, a variable, or an Airflow connection.

What is told is a secret: it is in no parameter, and no message repeats it. A connection is looked for as the variable
``AIRFLOW_CONN_<ID>``; a task of Airflow says with :func:`asking` whom to ask for those that are no variable, which
Airflow keeps in its own database or a secrets backend.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import yaml

from pipelines.errors import ConfigError, Unavailable
from pipelines.faults import said
from pipelines.params import UrlFrom
from pipelines.settings import Settings

Ask = Callable[[str], str | None]
"""A connection's JSON by its id; None: there is none."""
_SECRET = ("password", "secret", "token", "credential", "key", "sas", "header", "connection_string")
"""What the names of secret options have in them."""
_NAMES = re.compile(r"[^\s<>()\"'=,]*/[^\s<>()\"',]*")
"""Paths and addresses in a library's words."""
_ASK: ContextVar[Ask | None] = ContextVar("connections", default=None)


class Told(NamedTuple):
    """A secret text and, for messages, where it is told."""

    where: str
    text: str


class Connection(NamedTuple):
    """An Airflow connection; a field that it leaves out is empty."""

    kind: str
    host: str
    port: int | None
    login: str | None
    password: str | None
    schema: str
    extra: Mapping[str, str]


@contextmanager
def asking(ask: Ask) -> Iterator[None]:
    """Who is asked in this block for a connection that is no variable."""
    token = _ASK.set(ask)
    try:
        yield
    finally:
        _ASK.reset(token)


def told(given: UrlFrom, settings: Settings, case: str, *, key: str, expected: str) -> Told:
    """What a file, a variable or a connection holds. ``key`` is the parameter, ``expected`` what belongs there.

    Raises ConfigError if it cannot be read or is empty, Unavailable if Airflow hands over no such connection.
    """
    if given.file is not None:
        path = settings.root / Path(given.file).expanduser()
        try:
            found = Told(f"the file {path}", path.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{case}: {key} names {path}, which cannot be read ({said(error)}): write {expected} into it"
            ) from error
    elif given.env is not None:
        found = Told(f"the variable {given.env}", os.environ.get(given.env, ""))
    else:
        found = _of_airflow(str(given.connection))
    if not found.text:
        raise ConfigError(f"{case}: {key} names {found.where}, which is empty or not set: give it {expected}")
    return found


def _of_airflow(name: str) -> Told:
    variable = f"AIRFLOW_CONN_{name.upper()}"
    if text := os.environ.get(variable):
        return Told(f"the connection {name} ({variable})", text)
    ask = _ASK.get()
    if ask is None:
        return Told(f"the connection {name} ({variable}; those that Airflow keeps are seen by its tasks alone)", "")
    # Airflow says that there is none also when its API did not answer: trying again may help.
    text = ask(name)
    if text is None:
        raise Unavailable(
            f"Airflow has handed over no connection {name}, and there is no variable {variable}: make it, or name "
            "another in source of params.yaml"
        )
    return Told(f"the connection {name} of Airflow", text)


def mapping(found: Told, case: str, expected: str) -> dict[str, Any]:
    """YAML or JSON that is told. Raises ConfigError if it is none."""
    try:
        plain = yaml.safe_load(found.text)
    except yaml.YAMLError:
        plain = None
    if not isinstance(plain, dict):
        # Without the cause, which repeats what is told.
        raise ConfigError(f"{case}: {found.where} does not hold {expected}") from None
    return {str(name): value for name, value in plain.items() if value is not None and value != ""}


def login(
    given: UrlFrom | None, of_connection: Callable[[Connection], dict[str, Any]], settings: Settings, case: str
) -> dict[str, Any]:
    """A store's login as options of its library: none if none is told, then the library finds its own.

    ``of_connection`` makes them of an Airflow connection; it raises ValueError for one that cannot be read.
    """
    if given is None:
        return {}
    expected = "the login of a store as YAML, under the names of its library"
    found = told(given, settings, case, key="source.login_from", expected=expected)
    if given.connection is None:
        return mapping(found, case, expected)
    own = connection(found, case)
    try:
        return of_connection(own)
    except ValueError:
        # Without the cause: it may repeat what could not be read.
        raise ConfigError(f"{case}: {found.where} does not hold {expected}, or those of its Airflow provider") from None


def under(login_name: str, password_name: str) -> Callable[[Connection], dict[str, Any]]:
    """Login and password of a connection under these names, the rest as its extra has it."""

    def options(own: Connection) -> dict[str, Any]:
        both = {login_name: own.login, password_name: own.password}
        return {**{name: value for name, value in both.items() if name and value}, **own.extra}

    return options


def secrets_of(options: Mapping[str, Any]) -> tuple[str, ...]:
    """What of options may be in no message, the longest first."""
    found = list(_secret_values(options))
    found += [part for value in found for part in re.split(r"[:; ]|(?:Key|Signature)=", value) if len(part) > 3]
    return tuple(sorted(filter(None, found), key=len, reverse=True))


def _secret_values(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from map(str, value.values()) if "header" in name.lower() else _secret_values(value)
        elif any(word in name.lower() for word in _SECRET) and not name.endswith("_uri"):
            yield str(value)


def hidden(words: str, secrets: Iterable[str | None]) -> str:
    """A library's words without what nobody may read, as it is and as an address quotes it."""
    for secret in secrets:
        for text in {secret, quote(secret, safe="")} if secret else ():
            words = words.replace(text, "***")
    return words


def tells(words: str, marks: Iterable[str]) -> bool:
    """Whether a library's words have one of these marks, but for the paths and addresses that they name.

    >>> tells("status 403: no", ["403"]), tells("no such file: /credentials/part-27b7-403c.parquet", ["403", "cred"])
    (True, False)
    """
    left = _NAMES.sub("", words)
    return any(mark in left for mark in marks)


def connection(found: Told, case: str) -> Connection:
    """An Airflow connection out of its URI or JSON. Raises ConfigError if it is none."""
    try:
        if found.text.startswith("{"):
            return _of_json(json.loads(found.text))
        return _of_uri(found.text)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Without the cause: it may repeat what could not be read.
        raise ConfigError(
            f"{case}: {found.where} is no connection of Airflow's: write it as URI or as JSON with conn_type, login, "
            "password, host, port and schema"
        ) from None


def _of_json(given: dict[str, Any]) -> Connection:
    port, extra = given.get("port"), given.get("extra")
    if isinstance(extra, str):
        extra = json.loads(extra or "{}")
    return Connection(
        given["conn_type"],
        given.get("host") or "",
        None if port is None else int(port),
        given.get("login"),
        given.get("password"),
        given.get("schema") or "",
        dict(_texts(extra or {})),
    )


def _of_uri(text: str) -> Connection:
    parts = urlsplit(text)
    if not parts.scheme:
        raise ValueError
    # urlsplit's own hostname is in small letters, and of SQLite it is a path.
    host = re.sub(r":\d*$", "", parts.netloc.rpartition("@")[2]).strip("[]")
    options = dict(parse_qsl(parts.query))
    more = json.loads(options.pop("__extra__", "{}"))
    return Connection(
        parts.scheme,
        unquote(host),
        parts.port,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        unquote(parts.path).removeprefix("/"),
        options | dict(_texts(more)),
    )


def _texts(extra: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a connection's extra holds as texts; of what is nested the key that Google's provider keeps there."""
    for name, value in extra.items():
        if isinstance(value, str | int):
            yield str(name), str(value)
        elif str(name).endswith("keyfile_dict"):
            yield str(name), json.dumps(value)
