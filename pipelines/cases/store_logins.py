"""Logins that people have in another form than a store's library takes: Airflow's connections, Google's key files.

An Airflow connection is read as its provider reads it (amazon, google, microsoft.azure); what else its extra holds are
options under the library's own names.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from pipelines.cases.addresses import Connection, under

S3, GOOGLE, AZURE = ("s3", "s3a"), ("gs", "gcs"), ("abfs", "abfss", "az")
LIBRARIES = dict.fromkeys(S3, "s3fs") | dict.fromkeys(GOOGLE, "gcsfs") | dict.fromkeys(AZURE, "adlfs")
"""The library of each protocol that does not come with the project."""
KEY_FILES = ("service_account", "authorized_user", "external_account")
"""Types of files that Google gives out as logins."""


def of_connection(protocol: str) -> Callable[[Connection], dict[str, Any]]:
    """What makes options of a connection for a store; it raises ValueError if the connection cannot be read."""
    makers = dict.fromkeys(S3, _amazon) | dict.fromkeys(GOOGLE, _google) | dict.fromkeys(AZURE, _azure)
    return makers.get(protocol, under("", ""))


def options(protocol: str, given: dict[str, Any]) -> dict[str, Any]:
    """Options as the library takes them, also where the login is one of Google's key files as it was given out."""
    if protocol in GOOGLE and given.get("type") in KEY_FILES:
        return {"token": given}
    return given


def _amazon(own: Connection) -> dict[str, Any]:
    names = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_session_token": "token"}
    found = {names.get(name, name): value for name, value in under("key", "secret")(own).items()}
    if region := found.pop("region_name", ""):
        found["client_kwargs"] = {"region_name": region}
    return found


def _google(own: Connection) -> dict[str, Any]:
    found: dict[str, Any] = _short(own, "google_cloud_platform")
    path, key = found.pop("key_path", ""), found.pop("keyfile_dict", "")
    if key:
        found["token"] = json.loads(key)
    elif path:
        found["token"] = path
    return found


def _azure(own: Connection) -> dict[str, Any]:
    found: dict[str, Any] = _short(own, "wasb", "adls", "azure_data_lake")
    if tenant := found.pop("tenant", ""):
        found["tenant_id"] = tenant
    host = own.host.partition("://")[2] or own.host
    if "." in host and not host.endswith(".core.windows.net"):
        found.setdefault("account_host", host)
    if "tenant_id" in found:  # an application signs in, not the account
        both = {"client_id": own.login, "client_secret": own.password, "account_name": host.partition(".")[0]}
    else:
        both = {"account_name": own.login or host.partition(".")[0], "account_key": own.password}
    return {name: value for name, value in both.items() if value} | found


def _short(own: Connection, *kinds: str) -> dict[str, str]:
    """The extra, whose names older versions of Airflow begin with the connection's kind."""
    found = {}
    for name, value in own.extra.items():
        for kind in kinds:
            name = name.removeprefix(f"extra__{kind}__")  # noqa: PLW2901 - one name
        if value:
            found[name] = value
    return found
