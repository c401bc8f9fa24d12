"""A server whose cluster is not there says so before a client finds out."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace

import pytest

from pipelines.errors import SpinstreamError
from pipelines.streams import cluster_watch
from pipelines.streams.cluster_watch import ClusterWatch
from pipelines.streams.server import Server


@pytest.fixture
def port() -> int:
    """At which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def test_a_server_without_its_cluster_warns_at_the_start_and_is_not_ready_until_it_is_there(
    site, port, caplog, monkeypatch
):
    monkeypatch.setattr(cluster_watch, "ASK_SECONDS", 0.0)
    address = f"tcp://127.0.0.1:{port}"
    reason = f"no scheduler answers at {address}, the cluster of this server: Connection refused"
    with (
        caplog.at_level(logging.WARNING, "spinstream"),
        Server("127.0.0.1", 0, replace(site, cluster=address)) as server,
    ):
        assert f"{reason}; until one does, sessions end with that reason" in caplog.text
        assert (server.status().ready, server.status().reason) == (False, reason)
        with socket.create_server(("127.0.0.1", port)):
            assert server.status().ready


def test_what_was_found_holds_for_a_while(port):
    watch = ClusterWatch(f"127.0.0.1:{port}")
    assert watch.problem()
    with socket.create_server(("127.0.0.1", port)):
        assert watch.problem()


@pytest.mark.parametrize("address", ["", "tcp://", "tcp://host:port", "tcp://:8786"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(SpinstreamError, match=f"expected the address of a cluster as .*, got {address}"):
        ClusterWatch(address)


@pytest.mark.parametrize(
    ("address", "place"),
    [("tls://a.example", ("a.example", 8786)), ("tcp://[::1]:1", ("::1", 1)), ("10.0.0.1:9", ("10.0.0.1", 9))],
)
def test_addresses_are_those_of_dask(address, place):
    assert ClusterWatch(address)._place == place
