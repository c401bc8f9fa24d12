"""A session as a child process of Gadgetron: this process passes bytes on and records them, another one computes.

So a gadget that crashes or hangs is reported to Gadgetron, and through it to the person at its client, which Gadgetron
by itself does not do: of a child that died it reports an illegal message, for one that hangs it waits for ever.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.logs import configure
from pipelines.recordings import Recordings
from pipelines.streams.intake import Intake
from pipelines.streams.limits import WORK_SECONDS, Limits
from pipelines.streams.server_session import ServerSession
from pipelines.streams.turns import Turns
from pipelines.streams.workers import Peer, Setting, Workers
from pipelines.wire import Close, ErrorText, Message, MessageId

if TYPE_CHECKING:
    from gadgetron.external.connection import Connection as Parent

RECORD = "SPINSTREAM_RECORD"
"""Environment variable: the folder to record into what Gadgetron sends."""

WORK_LIMIT = "SPINSTREAM_WORK_LIMIT"
"""Environment variable: seconds that a gadget may be at one item."""


class GadgetronSession(ServerSession):
    """One run of a pipeline.

    Args:
        opening: configuration and header as messages, which the `gadgetron` package has read already.
        sock: Gadgetron's; the package closes it when `run` is over.
        workers: of which one is taken.
    """

    def __init__(self, opening: bytes, sock: socket.socket, workers: Workers, limits: Limits) -> None:
        super().__init__(os.getpid(), sock, workers, limits, Turns(None))
        self._opening = opening

    def _take_in(self, intake: Intake) -> None:
        intake.take(memoryview(self._opening))
        super()._take_in(intake)

    def _error(self, reason: str) -> Message:
        return ErrorText(f"spinstream: {reason}")

    def _end_answer(self) -> None:
        self._bring_to_disk()
        self._answered_at = time.monotonic()
        self._answer(Close())  # only then Gadgetron ends its side; the package sends another one, so no hanging up


def serve_parent(parent: Parent) -> None:
    """Serves Gadgetron until it closes.

    Args:
        parent: the connection that the `gadgetron` package opened, which has read configuration and header.
    """
    configure()
    limits = Limits(patience_s=None, work_s=float(os.environ.get(WORK_LIMIT, WORK_SECONDS)))
    workers = Workers(Setting(limits=limits, set_up=configure, peer=Peer.GADGETRON), fresh=True)
    session = GadgetronSession(_opening(parent), parent.socket.socket, workers, limits)
    folder = os.environ.get(RECORD)
    if folder:
        session.record(Recordings(Path(folder)))
    try:
        session.run()
    finally:
        journal = session.end_recording()
        workers.close()
    if journal is not None:  # by a process that Gadgetron does not wait for
        command = [sys.executable, "-m", "pipelines.recordings", str(journal.parent), journal.name]
        quiet = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        os.posix_spawn(sys.executable, command, os.environ, file_actions=quiet, setsid=True)


def _opening(parent: Parent) -> bytes:
    config, header = (bytes(raw or b"") for raw in (parent.raw_bytes.config, parent.raw_bytes.header))
    return b"".join(
        struct.pack("<HI", number, len(text)) + text
        for number, text in ((MessageId.CONFIG_TEXT, config), (MessageId.HEADER, header))
    )
