"""Servers for tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from pipelines.registry import installed_gadgets
from pipelines.session import Site
from pipelines.streams.limits import Limits
from pipelines.streams.server import Server

from mrd_items import REGISTRY

# The processes that tests start compute small things: threads of theirs would only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def site(tmp_path) -> Site:
    return Site(device="cpu", state_folder=tmp_path / "state", registry={**installed_gadgets(), **REGISTRY})


@pytest.fixture
def start_server(site):
    """Starts servers that end with the test; gives the address."""
    servers = []

    def start(recordings=None, **limits) -> tuple[str, int]:
        server = Server("127.0.0.1", 0, site, Limits(**{"patience_s": 5.0, **limits}), recordings)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        servers.append(server)
        return server.server_address[:2]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def address(start_server) -> Iterator[tuple[str, int]]:
    return start_server()
