"""The chain as an external process of Gadgetron: `python -m gadgetron PORT pipelines.streams.gadgetron run_chain`.

The `gadgetron` package connects and reads configuration and header; from then on its socket is ours, because that
package's own reader spins for ever when the peer vanishes, and its error handling is to close in silence. Gadgetron
passes an error message (id 8) on to its client; texts (id 5) from a child end the whole run, so what gadgets tell goes
to the log.

Everything else is imported inside `run_chain`: an import that fails must be reported to the client too.
"""

from __future__ import annotations

import logging
import struct
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gadgetron.external.connection import Connection as ParentConnection

log = logging.getLogger("spinstream")

CLOSE_ID = 4
ERROR_ID = 8
LAST_WORDS_SECONDS = 10.0


def run_chain(parent: ParentConnection) -> None:
    """Runs the gadgets of the external node's <configuration> until Gadgetron closes.

    Args:
        parent: the connection that the `gadgetron` package opened; it sends the close itself afterwards.
    """
    try:
        from pipelines.streams.gadgetron_session import serve_parent

        serve_parent(parent)
    except Exception as error:
        log.exception("a defect of spinstream")
        _report(parent, f"spinstream: {type(error).__name__}: {error}")


def _report(parent: ParentConnection, text: str) -> None:
    """Sends the error message; written by hand, so that it works even when our own modules do not import.

    Gadgetron goes on sending until it has read the message. A process that ended with data unread would reset the
    connection, and the message would be lost.
    """
    encoded = text.encode(errors="backslashreplace")
    sock = parent.socket.socket
    deadline = time.monotonic() + LAST_WORDS_SECONDS
    try:
        sock.sendall(struct.pack("<HQ", ERROR_ID, len(encoded)) + encoded + struct.pack("<H", CLOSE_ID))
        sock.settimeout(LAST_WORDS_SECONDS)
        while sock.recv(1 << 20) and time.monotonic() < deadline:
            pass
    except TimeoutError:
        log.info("Gadgetron was told and is silent")
    except OSError as error:
        log.error("Gadgetron is gone and may not have heard why: %s", error)
