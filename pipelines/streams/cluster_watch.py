"""Whether a cluster is there, as far as a server without Dask can tell: its scheduler takes connections."""

from __future__ import annotations

import socket
import time
from urllib.parse import urlsplit

from pipelines.errors import SpinstreamError

DASK_PORT = 8786
ANSWER_SECONDS = 2.0
ASK_SECONDS = 15.0
"""What was found holds so long: a scheduler logs each that connects and goes."""


class ClusterWatch:
    """Asks a scheduler, each time that somebody wants to know.

    Args:
        address: such as tcp://host:8786 or tls://host:8786.

    Raises:
        SpinstreamError: it is no such address.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._place = _host_and_port(address)
        self._asked_at = float("-inf")
        self._problem = ""

    def problem(self) -> str:
        """Why frames cannot be computed there; empty if they can."""
        if time.monotonic() - self._asked_at >= ASK_SECONDS:
            self._problem = self._ask()
            self._asked_at = time.monotonic()
        return self._problem

    def _ask(self) -> str:
        try:
            socket.create_connection(self._place, ANSWER_SECONDS).close()
        except OSError as error:
            return f"no scheduler answers at {self._address}, the cluster of this server: {error.strerror or error}"
        return ""


def _host_and_port(address: str) -> tuple[str, int]:
    parts = urlsplit(address if "://" in address else f"tcp://{address}")
    try:
        host, port = parts.hostname, parts.port or DASK_PORT
    except ValueError:  # of the port
        host = None
    if not host:
        raise SpinstreamError(f"expected the address of a cluster as tcp://HOST:PORT or tls://HOST:PORT, got {address}")
    return host, port
