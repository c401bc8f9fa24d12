"""The embedded server: speaks Gadgetron's protocol to Gadgetron's and FIRE's clients; other processes compute."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import shutil
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.errors import SpinstreamError, WireError
from pipelines.logs import in_session
from pipelines.monitor import ServerStatus, Totals
from pipelines.recordings import Recordings
from pipelines.session import Site
from pipelines.streams.cluster_watch import ClusterWatch
from pipelines.streams.finisher import Finisher
from pipelines.streams.limits import LAST_WORDS_SECONDS, Limits
from pipelines.streams.progress import Outcome
from pipelines.streams.server_session import ServerSession
from pipelines.streams.turns import Turns
from pipelines.streams.workers import Setting, Workers
from pipelines.wire import ERROR, Close, Connection, Text

log = logging.getLogger("spinstream")

POLL_SECONDS = 0.02
RETRY_SECONDS = 0.1
FIRST_BYTE_SECONDS = 30.0
ALIVE_SECONDS = 10.0

Border = Callable[[socket.socket], socket.socket]
"""What stands between the network and a session, such as TLS: gives the socket to speak with."""


class Server(socketserver.ThreadingTCPServer):
    """Accepts clients until `shutdown`; each session has a process of its own.

    Args:
        host: address to listen on.
        port: 0 picks a free one; see `server_address`.
        site: of this machine.
        limits: of the sessions.
        recordings: where what clients send is recorded; None records nothing.
        border: applied to each client's socket, in the thread of its session.
        set_up: called first in each process of a session; must be picklable.

    Attributes:
        sessions: that run.
        totals: of the sessions that have ended.
        draining: whether no more clients are taken.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        host: str,
        port: int,
        site: Site | None = None,
        limits: Limits | None = None,
        recordings: Recordings | None = None,
        border: Border = lambda sock: sock,
        set_up: Callable[[], object] = object,
    ) -> None:
        site = site or Site()
        self.cluster = None if site.cluster is None else ClusterWatch(site.cluster)
        self.limits = limits or Limits()
        self.recordings = recordings
        self.finisher = Finisher(recordings) if recordings is not None else None
        self.border = border
        self.numbers = itertools.count(1)
        self.places = threading.BoundedSemaphore(self.limits.sessions)
        self.sessions: set[ServerSession] = set()
        self.totals = Totals()
        self.draining = False
        self._counting = threading.Lock()
        self._accepting = time.monotonic()
        self.workers = Workers(Setting(site=site, limits=self.limits, set_up=set_up))
        self.turns = Turns(self.limits.turns or (1 if _uses_cuda(site) else None))
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)
        self.workers.warm_up()
        if self.cluster is not None and (problem := self.cluster.problem()):
            log.warning("%s; until one does, sessions end with that reason", problem)

    def status(self) -> ServerStatus:
        """How it is, for a monitor."""
        with self._counting:
            sessions, totals = [session.status() for session in self.sessions], self.totals
        reason = self.unready()
        return ServerStatus(
            alive=self.draining or time.monotonic() - self._accepting < ALIVE_SECONDS,
            ready=not reason,
            reason=reason,
            draining=self.draining,
            places=self.limits.sessions,
            sessions=sessions,
            totals=totals,
            waiting_for_turn=self.turns.waiting,
            recordings_free_bytes=None if self.recordings is None else _free_bytes(self.recordings.folder),
        )

    def service_actions(self) -> None:
        """Called by `serve_forever` again and again."""
        self._accepting = time.monotonic()

    def _running(self) -> list[ServerSession]:
        with self._counting:
            return list(self.sessions)

    def begin(self, session: ServerSession) -> None:
        """Counts a session among those that run."""
        with self._counting:
            self.sessions.add(session)

    def end(self, session: ServerSession, outcome: Outcome) -> None:
        """Counts it among those that have ended."""
        with self._counting:
            self.sessions.discard(session)
            self.totals = self.totals.ended(outcome).including(session.status())

    def refuse(self, sock: socket.socket, reason: str) -> None:
        """Tells a client why it is not served."""
        log.error("a client is refused: %s", reason)
        self.count(Outcome.REFUSED)
        with Connection(sock, LAST_WORDS_SECONDS) as connection:
            with contextlib.suppress(WireError):
                connection.send(Text(f"{ERROR}{reason}\n"))
                connection.send(Close())
            connection.drain(LAST_WORDS_SECONDS)

    def count(self, outcome: Outcome) -> None:
        """Counts a client that had no session."""
        with self._counting:
            self.totals = self.totals.ended(outcome)

    def unready(self) -> str:
        """Why a new client would not be served; empty if it would."""
        if self.draining:
            return "the server is being stopped"
        if len(self.sessions) >= self.limits.sessions:
            return f"all {self.limits.sessions} sessions of this server are in use"
        if self.recordings is not None and not os.access(self.recordings.folder, os.W_OK | os.X_OK):
            return "the folder of the recordings cannot be written"
        return "" if self.cluster is None else self.cluster.problem()

    def drain(self, seconds: float, hurry: threading.Event | None = None) -> bool:
        """Takes no more clients, and waits for the running sessions; call `shutdown` before.

        Args:
            seconds: to wait.
            hurry: once set, ends the waiting.

        Returns:
            Whether all have ended.
        """
        self.draining = True
        self.socket.close()
        hurry = hurry or threading.Event()
        deadline = time.monotonic() + seconds
        while self.sessions and time.monotonic() < deadline and not hurry.wait(POLL_SECONDS):
            pass
        return not self.sessions

    def dismiss(self, seconds: float) -> bool:
        """Tells the clients of running sessions that the server stops, and ends the sessions.

        Returns:
            Whether all have ended within that time.
        """
        for session in self._running():
            session.dismiss("the server is being stopped")
        if not self.drain(seconds):
            for session in self._running():
                session.cut()
        return self.drain(seconds)

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """The next client, called by `serve_forever`."""
        try:
            sock, address = super().get_request()
        except OSError as error:  # no descriptors left, for example; the client waits in line
            log.error("a client cannot be taken: %s", error.strerror or error)
            time.sleep(RETRY_SECONDS)
            raise
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a machine that lost power says nothing
        return sock, address

    def server_close(self) -> None:
        """Ends what waits for sessions."""
        super().server_close()
        self.workers.close()
        if self.finisher is not None:
            self.finisher.close()


class _Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        number = next(self.server.numbers)
        with in_session(number):
            log.debug("client at %s", self.client_address[0])
            try:
                with self._beyond_border() as sock:
                    self._serve(sock, number)
            except SpinstreamError as error:
                log.error("client at %s: %s", self.client_address[0], error)
            except Exception:
                log.exception("a defect of spinstream")

    def _beyond_border(self) -> socket.socket:
        try:
            return self.server.border(self.request)
        except SpinstreamError:
            self.server.count(Outcome.REFUSED)
            raise

    def _serve(self, sock: socket.socket, number: int) -> None:
        server = self.server
        if not _speaks(sock):  # a health check, a scan of ports: no process, no place and no recording for them
            server.count(Outcome.SILENT)
            return
        log.info("client at %s", self.client_address[0])
        if server.draining or not server.places.acquire(blocking=False):
            server.refuse(sock, f"{server.unready() or 'no place is free'}; try again later")
            return
        try:
            self._record_and_run(sock, number)
        finally:
            server.places.release()

    def _record_and_run(self, sock: socket.socket, number: int) -> None:
        server = self.server
        session = ServerSession(number, sock, server.workers, server.limits, server.turns)
        server.begin(session)
        outcome = Outcome.FAILED
        try:
            if server.recordings is not None:
                session.record(server.recordings)
            outcome = session.run()
        finally:
            journal = session.end_recording()
            server.end(session, outcome)
            if journal is not None and server.finisher is not None:
                server.finisher.finish(journal)


def _speaks(sock: socket.socket) -> bool:
    """Whether a client says something before it ends its side, or within a time."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    try:
        return bool(poll.poll(FIRST_BYTE_SECONDS * 1000)) and bool(sock.recv(1, socket.MSG_PEEK))
    except OSError as error:
        log.debug("a client has gone before it said anything: %s", error)
        return False


def _uses_cuda(site: Site) -> bool:
    return site.device != "cpu" and torch.cuda.device_count() > 0


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:  # the folder is gone
        return 0
