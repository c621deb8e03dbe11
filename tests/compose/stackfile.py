"""docker-compose.yaml as Compose reads it: anchors merged, variables filled in."""

import re
from functools import cache
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yaml"
SECRETS = "/run/secrets/"
_VARIABLE = re.compile(r"\$(?:\$|\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\})")


def interpolate(text, given):
    """``${NAME:-default}`` filled in, ``$$`` made a dollar."""
    return _VARIABLE.sub(
        lambda found: "$" if found.group() == "$$" else given.get(found["name"]) or found["default"] or "", text
    )


@cache
def load(path=COMPOSE, given=()):
    """The file's contents; ``given`` are pairs of variables and values."""

    def filled(value):
        if isinstance(value, dict):
            return {name: filled(part) for name, part in value.items()}
        if isinstance(value, list):
            return [filled(part) for part in value]
        return interpolate(value, dict(given)) if isinstance(value, str) else value

    return filled(yaml.safe_load(path.read_text()))


def services():
    """All services by name."""
    return load()["services"]


def environment(service):
    """A service's environment as text."""
    return {name: str(value) for name, value in services()[service].get("environment", {}).items()}


def published(service):
    """``(address, host port, container port)`` of everything that a service publishes."""
    return [
        (address, int(host), int(inside))
        for address, host, inside in (port.split(":") for port in services()[service].get("ports", ()))
    ]


def own_images():
    """The services whose image is built here."""
    return {name: service for name, service in services().items() if "build" in service}
