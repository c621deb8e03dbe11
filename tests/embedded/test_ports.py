"""Ports: defaults, the environment, free ones, and what is said about a busy one."""

import socket
from dataclasses import asdict

import pytest

from embedded.ports import DRAWN, HOST, Ports, is_free, names, variable
from pipelines.errors import ConfigError, Unavailable


def test_the_environment_moves_one_port():
    """A variable moves its service and leaves the others where they are.

    Triton's are drawn, so that nobody knows them beforehand.
    """
    found = Ports.from_environment({"PERENNIAL_PORT_AIRFLOW": "18080"})
    drawn = {name: getattr(found, name) for name in DRAWN}
    assert found == Ports(airflow=18080, **drawn)
    assert drawn.keys() == {"triton_grpc", "triton_metrics"}
    assert drawn != {name: getattr(Ports(), name) for name in DRAWN}
    assert all(is_free(port) for port in drawn.values())
    assert Ports.from_environment({"PERENNIAL_PORT_TRITON_GRPC": "18001"}).triton_grpc == 18001


@pytest.mark.parametrize("text", ["", "http", "0", "65536", "-1", "8080.0"])
def test_what_is_no_port_is_refused_by_name(text):
    """A value that is no port number raises ConfigError naming the variable."""
    with pytest.raises(ConfigError, match="PERENNIAL_PORT_MLFLOW"):
        Ports.from_environment({"PERENNIAL_PORT_MLFLOW": text})


def test_one_port_for_two_services_is_refused():
    """Two services cannot be given the same port; the message names both."""
    with pytest.raises(ConfigError, match=r"mlflow and gateway.*PERENNIAL_PORT_GATEWAY"):
        Ports.from_environment({"PERENNIAL_PORT_GATEWAY": "5000"})


def test_free_ports_are_free_and_different():
    """Ports.free gives every service a port of its own that can be bound."""
    ports = asdict(Ports.free())
    assert list(ports) == names()
    assert len(set(ports.values())) == len(ports)
    assert all(is_free(port) for port in ports.values())


def test_a_busy_port_is_named_with_its_variable():
    """Of eight ports only the busy one is named, with the variable that moves it."""
    ports = Ports.free()
    with socket.create_server((HOST, ports.gateway)):
        assert not is_free(ports.gateway)
        with pytest.raises(Unavailable) as raised:
            ports.require_free()
    assert f"{ports.gateway} (gateway)" in str(raised.value)
    assert [name for name in names() if variable(name) in str(raised.value)] == ["gateway"]
    ports.require_free()
