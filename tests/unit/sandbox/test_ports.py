"""Which port a server that others start is given."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from worker.sandbox import ports
from worker.sandbox.ports import HOST, free_port


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the system says which ports it gives to connections."""
    file = tmp_path / "ip_local_port_range"
    monkeypatch.setattr(ports, "_RANGE", file)
    monkeypatch.setattr(ports, "_returned", set())
    return file


def test_port_is_below_those_that_connections_get(given: Path) -> None:
    given.write_text("10100\t60999\n")
    assert {free_port() for _ in range(20)} <= {*range(10_000, 10_100)}


def test_port_is_not_given_twice_since_its_server_may_be_down(given: Path) -> None:
    """A shop that had died came back, and another run's shop had its port."""
    given.write_text("10100\t60999\n")
    assert len({free_port() for _ in range(60)}) == 60


def test_port_that_is_in_use_is_not_given(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "_FIRST", taken - 1)
        given.write_text(f"{taken + 2} 60999")
        assert taken not in {free_port() for _ in range(50)}


@pytest.mark.parametrize("text", [None, "", "all", "9000 60999"])
def test_any_free_port_is_given_where_the_range_says_nothing(given: Path, text: str | None) -> None:
    if text is not None:
        given.write_text(text)
    with socket.create_server((HOST, free_port())) as server:
        assert server.getsockname()[0] == HOST


@pytest.mark.parametrize("text", ["10100\t60999\n", ""])
def test_port_is_given_to_no_other_process_before_its_server_has_started(
    given: Path, text: str
) -> None:
    """Another test's sandbox answered the health check of the one that was still starting."""
    given.write_text(text)
    port = free_port()
    with socket.socket() as of_another, pytest.raises(OSError, match="in use"):
        of_another.bind((HOST, port))
    with socket.socket() as client, pytest.raises(ConnectionRefusedError):
        client.connect((HOST, port))
    with socket.create_server((HOST, port)), socket.create_connection((HOST, port)):
        pass
    with socket.create_server((HOST, port)):  # a server that comes back
        pass
