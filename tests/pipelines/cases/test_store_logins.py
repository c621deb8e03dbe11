"""Logins of stores as people have them: Airflow's connections, and the key files that Google gives out."""

from __future__ import annotations

import json

import pytest

from pipelines.cases import store_logins
from pipelines.cases.addresses import Told, connection, secrets_of

KEY = {"type": "service_account", "private_key": "-----BEGIN", "token_uri": "https://oauth2.googleapis.com/token"}


@pytest.mark.parametrize(
    ("protocol", "text", "options"),
    [
        ("s3", "aws://me:secret@", {"key": "me", "secret": "secret"}),
        (
            "s3",
            json.dumps({"conn_type": "aws", "extra": {"aws_session_token": "t", "region_name": "eu-west-1"}}),
            {"token": "t", "client_kwargs": {"region_name": "eu-west-1"}},
        ),
        (
            "gs",
            json.dumps({"conn_type": "google_cloud_platform", "extra": {"keyfile_dict": KEY, "project": "shop"}}),
            {"token": KEY, "project": "shop"},
        ),
        (
            "gs",
            "google-cloud-platform://?extra__google_cloud_platform__key_path=%2Fkey.json",
            {"token": "/key.json"},
        ),
        (
            "abfs",
            "wasb://me:a2V5@",
            {"account_name": "me", "account_key": "a2V5"},
        ),
        (
            "abfs",
            json.dumps(
                {
                    "conn_type": "wasb",
                    "host": "https://lake.blob.core.windows.net",
                    "login": "app",
                    "password": "secret",
                    "extra": {"tenant_id": "t"},
                }
            ),
            {"account_name": "lake", "client_id": "app", "client_secret": "secret", "tenant_id": "t"},
        ),
        (
            "abfs",
            json.dumps({"conn_type": "wasb", "login": "lake", "extra": {"sas_token": "sv=1", "tenant_id": ""}}),
            {"account_name": "lake", "sas_token": "sv=1"},
        ),
        (
            "az",
            json.dumps({"conn_type": "wasb", "host": "lake.blob.example.org", "login": "lake", "password": "a2V5"}),
            {"account_name": "lake", "account_key": "a2V5", "account_host": "lake.blob.example.org"},
        ),
        ("https", json.dumps({"conn_type": "http", "login": "me", "extra": {"x": "1"}}), {"x": "1"}),
    ],
)
def test_a_connection_is_read_as_its_provider_reads_it(protocol, text, options):
    """Login, password, host and extra of Airflow's providers become the options of the store's library."""
    assert store_logins.of_connection(protocol)(connection(Told("a variable", text), "shop")) == options


def test_a_key_file_of_google_is_a_login():
    """A service account's key as it was given out is the token; other options stay as they are."""
    assert store_logins.options("gs", KEY) == {"token": KEY}
    assert store_logins.options("s3", KEY) == KEY
    assert store_logins.options("gs", {"token": "anon"}) == {"token": "anon"}


def test_what_is_secret_in_options_is_known():
    """Keys that are nested or part of a longer text are hidden; addresses and accounts are not."""
    hidden = secrets_of(
        {
            "token": {**KEY, "private_key": "-----BEGIN KEY-----\nabcdef", "client_email": "a@b"},
            "connection_string": "AccountName=lake;AccountKey=a2V5a2V5;BlobEndpoint=http://127.0.0.1:1",
            "client_kwargs": {"region_name": "eu-west-1"},
            "headers": {"Authorization": "Bearer abc.def"},
        }
    )
    assert {"a2V5a2V5", "Bearer abc.def", "abc.def"} <= set(hidden)
    assert any("abcdef" in text for text in hidden)
    assert not {"a@b", "eu-west-1", KEY["token_uri"], "https"} & set(hidden)
