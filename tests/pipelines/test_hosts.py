"""pipelines/hosts.py: names as they are written, and which requests may come in."""

import pytest

from pipelines import hosts
from pipelines.errors import ConfigError
from pipelines.settings import read_settings

KNOWN = {"gateway"}
TRUSTED = {"perennial.example.org"}


def scope(host, method="GET", origin=None, server=("172.18.0.5", 8090)):
    """An ASGI scope with these headers; ``host`` may be several."""
    given = [host] if isinstance(host, str) else host
    headers = [(b"host", one.encode("latin-1")) for one in given] + (
        [(b"origin", origin.encode())] if origin is not None else []
    )
    return {"type": "http", "method": method, "headers": headers, "server": server}


def status(*arguments, **named):
    """With which status a request is refused, 200 if it is not."""
    return (hosts.refusal(scope(*arguments, **named), KNOWN, TRUSTED) or (200, ""))[0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("LocalHost", ("localhost", None)),
        ("127.0.0.1:8090", ("127.0.0.1", 8090)),
        ("[::1]", ("::1", None)),
        ("[0:0:0:0:0:0:0:1]:80", ("::1", 80)),
        ("gateway:65535", ("gateway", 65535)),
        *(
            (text, None)
            for text in (
                "",
                ":80",
                "a:",
                "a:b",
                "a:65536",
                "::1",
                "[::1",
                "[::1]x",
                "[1.2.3.4]",
                "a b",
                "a/b",
                "u@a",
                "a,b",
                "é",
                "*",
                "a\n",
            )
        ),
    ],
)
def test_a_host_header_is_read_whole(text, found):
    """Names, addresses and IPv6 literals have one spelling, with and without a port.

    Whatever else stands there is no host.
    """
    assert hosts.authority(text) == found


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(
            (host, 200)
            for host in (
                "localhost",
                "127.0.0.1:8090",
                "[::1]:8090",
                "gateway:8090",
                "GATEWAY",
                "perennial.example.org",
                "172.18.0.5:1",
            )
        ),
        *(
            (host, 421)
            for host in (
                "evil.example",
                "127.0.0.1.evil.example:8090",
                "localhost.evil.example",
                "10.evil.example",
                "172.18.0.6",
                "[::2]",
            )
        ),
        *(
            (host, 400)
            for host in (
                "",
                [],
                ["localhost", "evil.example"],
                ["localhost", "localhost"],
                "http://localhost",
                "localhost:x",
            )
        ),
    ],
)
def test_only_own_names_come_in(host, expected):
    """Own names and the address that was connected to are let in with any port; others are 421, none or two are 400."""
    assert status(host) == expected


@pytest.mark.parametrize(
    ("host", "origin", "expected"),
    [
        ("127.0.0.1:8090", None, 200),
        ("127.0.0.1:8090", "http://127.0.0.1:8090", 200),
        ("[::1]:8090", "http://[::1]:8090", 200),
        ("perennial.example.org", "https://perennial.example.org", 200),
        ("127.0.0.1:8090", "https://perennial.example.org", 200),
        *(
            ("127.0.0.1:8090", origin, 403)
            for origin in ("http://127.0.0.1:5000", "http://evil.example", "https://127.0.0.1", "null", "", "file://")
        ),
        ("127.0.0.1:8090", "http://gateway:8090", 403),
        ("evil.example:8090", "http://evil.example:8090", 421),
    ],
)
def test_other_pages_write_nothing(host, origin, expected):
    """What a page writes is let in from the server's own pages and those of named hosts only.

    Reading is for browsers to judge.
    """
    assert [status(host, method, origin) for method in ("POST", "PUT", "PATCH", "DELETE")] == [expected] * 4
    assert status(host, "GET", origin) == (421 if expected == 421 else 200)


def test_refusals_say_which_host_and_which_setting():
    """A refusal names the host, the page and the setting that would let them in."""
    _, host = hosts.refusal(scope("evil.example"), KNOWN, TRUSTED)
    _, page = hosts.refusal(scope("localhost", "POST", "http://evil.example"), KNOWN, TRUSTED)
    for text in (host, page):
        assert "evil.example" in text
        assert "PERENNIAL_ALLOWED_HOSTS" in text


def test_the_setting_is_a_list_of_hosts(monkeypatch):
    """Names and addresses are taken in any spelling.

    Ports, pages and wildcards are refused with the variable's name.
    """
    assert hosts.listed(" A.example.org, [::1],fd00::7 ,") == {"a.example.org", "::1", "fd00::7"}
    for wrong in ("a:80", "http://a", "*", "*.example.org", "[::1]:80"):
        monkeypatch.setenv("PERENNIAL_ALLOWED_HOSTS", f"b,{wrong}")
        with pytest.raises(ConfigError, match="PERENNIAL_ALLOWED_HOSTS") as error:
            read_settings()
        assert wrong in str(error.value)


def test_addresses_of_services_name_their_hosts():
    """The host of an address is known by itself; an empty address has none."""
    assert hosts.of_urls(
        "http://gateway:8090", "https://[::1]:8/x", "https://user:word@a.example/", "", "nonsense"
    ) == {"gateway", "::1", "a.example"}
