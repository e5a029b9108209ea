"""The address that a gateway registers is one that processes of other machines reach (K3)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from iccm_assets.gateway.server import replica_url, socket_url

DOCUMENTATION_NETWORK = "192.0.2.7"  # routed nowhere, like any other address outside


@pytest.fixture
def everywhere() -> Iterator[socket.socket]:
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        yield listening


def test_a_socket_on_one_address_registers_it() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        assert replica_url(listening, f"postgresql://u@{DOCUMENTATION_NETWORK}/d") == socket_url(listening)


def test_a_socket_on_all_addresses_registers_the_one_that_leads_to_the_database(
    everywhere: socket.socket,
) -> None:
    """A code location on another machine measures production at this address: 0.0.0.0 would be its own."""
    port = everywhere.getsockname()[1]
    assert replica_url(everywhere, "postgresql://u:p@127.0.0.1:5/d") == f"http://127.0.0.1:{port}"
    assert replica_url(everywhere, "postgres://u@[::1]/d") in (
        f"http://[::1]:{port}",
        f"http://{socket.gethostname()}:{port}",  # a machine without IPv6
    )
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((DOCUMENTATION_NETWORK, 9))
        except OSError:
            own = socket.gethostname()  # a machine without a network
        else:
            own = probe.getsockname()[0]
    assert replica_url(everywhere, f"postgresql://u@{DOCUMENTATION_NETWORK}/d") == f"http://{own}:{port}"


@pytest.mark.parametrize("database", [None, "postgresql:///d?host=/run/postgresql"])
def test_a_database_of_this_machine_gives_the_loopback_address(
    everywhere: socket.socket, database: str | None
) -> None:
    assert replica_url(everywhere, database) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"


def test_a_database_whose_name_does_not_resolve_gives_the_name_of_the_machine(
    everywhere: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    url = replica_url(everywhere, "postgresql://u@nowhere.invalid/d")
    assert url == f"http://{socket.gethostname()}:{everywhere.getsockname()[1]}"
