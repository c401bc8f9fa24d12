"""The chain as an external process of Gadgetron: `python -m gadgetron PORT pipelines.streams.gadgetron run_chain`.

The `gadgetron` package connects and reads configuration and header; from then on its socket is read and written by
`pipelines.wire`, because that package's own reader spins for ever when the peer vanishes, and its error handling is to
close in silence. Gadgetron passes an error message (id 8) on to its client; texts (id 5) from a child end the whole
run, so what gadgets tell goes to the log.

Everything heavy is imported inside `run_chain`: an import that fails must be reported to the client too.
"""

from __future__ import annotations

import logging
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gadgetron.external.connection import Connection as ParentConnection

log = logging.getLogger("spinstream")

ERROR_ID = 8
BUFFER_BYTES = 256 << 20
LAST_WORDS_SECONDS = 10.0


def run_chain(parent: ParentConnection) -> None:
    """Runs the gadgets of the external node's <configuration> until Gadgetron closes.

    Args:
        parent: the connection that the `gadgetron` package opened; it sends the close itself afterwards.
    """
    try:
        _run(parent)
    except Exception as error:
        log.exception("the chain failed")
        _report(parent, f"spinstream: {_reason(error)}")


def _run(parent: ParentConnection) -> None:
    from pipelines.definition import parse_child_configuration
    from pipelines.session import Site, open_chain, read_header
    from pipelines.streams.receiver import Receiver
    from pipelines.wire import Connection

    definition = parse_child_configuration(parent.raw_bytes.config)
    connection = Connection(parent.socket.socket)
    receiver = Receiver(connection, BUFFER_BYTES, log.info)
    header = read_header(_header(parent.raw_bytes.header))
    chain = open_chain(definition, header, Site(), log.info, receiver.peer_has_ended)
    for item in chain.run(receiver.following(connection.receive())):
        connection.send(item)
    log.info("times: %s", chain.report())


def _header(raw: bytes) -> str:
    return bytes(raw).rstrip(b"\0").decode()


def _reason(error: Exception) -> str:
    from pipelines.errors import SpinstreamError

    return str(error) if isinstance(error, SpinstreamError) else f"{type(error).__name__}: {error}"


def _report(parent: ParentConnection, text: str) -> None:
    """Sends the error message; written by hand, so that it works even when our own modules do not import.

    Gadgetron goes on sending until it has read the message. A process that ended with data unread would reset the
    connection, and the message would be lost.
    """
    encoded = text.encode(errors="backslashreplace")
    sock = parent.socket.socket
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    try:
        sock.sendall(struct.pack("<HQ", ERROR_ID, len(encoded)) + encoded)
        sock.settimeout(LAST_WORDS_SECONDS)
        while sock.recv(1 << 20) and time.monotonic() < deadline:
            pass
    except TimeoutError:
        log.info("Gadgetron was told and is silent")
    except OSError as error:
        log.error("Gadgetron is gone and may not have heard why: %s", error)
