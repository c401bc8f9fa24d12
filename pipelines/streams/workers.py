"""Processes in which sessions run, one at a time each: what crashes or hangs there takes nobody else along.

They are forked from one process that has loaded everything and computed nothing, which takes milliseconds where a fresh
interpreter takes seconds. A worker whose session ended well serves again, with what it has in its cache.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.reduction import recv_handle, send_handle

import psutil

from pipelines.logs import in_session
from pipelines.session import Site
from pipelines.streams.conversation import Conversation, Outcome
from pipelines.streams.limits import Limits
from pipelines.streams.progress import Progress
from pipelines.wire import Connection

log = logging.getLogger("spinstream")

PROGRESS_SECONDS = 1.0
IDLE_WORKERS = 2
END_SECONDS = 5.0


@dataclass(frozen=True)
class WantsTurn:
    """The worker waits for its turn at the device."""


@dataclass(frozen=True)
class EndsTurn:
    """The worker lets others have their turn."""


@dataclass(frozen=True)
class Ended:
    """The session is over, and the worker can serve another."""

    outcome: Outcome


@dataclass(frozen=True)
class Died:
    """The process is gone."""

    how: str


Event = Progress | WantsTurn | EndsTurn | Ended | Died


class Worker:
    """A process for sessions, seen from the server.

    Args:
        site: of this machine.
        limits: of the server.
        set_up: called first in the process; must be picklable.
    """

    def __init__(self, site: Site, limits: Limits, set_up: Callable[[], object]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["pipelines.streams.preload"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, site, limits, set_up), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, number: int) -> socket.socket:
        """Starts a session; gives our end of its conversation.

        Raises:
            OSError: the process is gone.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._pipe.send(number)
            send_handle(self._pipe, theirs.fileno(), self._process.pid)
        return ours

    def events(self, seconds: float) -> Iterator[Event | None]:
        """What happens in the session; None where nothing does for that long; the last is `Ended` or `Died`."""
        event: Event | None = None
        while not isinstance(event, (Ended, Died)):
            try:
                event = self._pipe.recv() if self._pipe.poll(seconds) else None
            except (EOFError, OSError):
                self._process.join(END_SECONDS)
                event = Died(_how(self._process.exitcode))
            yield event

    def grant_turn(self) -> None:
        """Answers `WantsTurn`."""
        with contextlib.suppress(OSError):  # it died meanwhile, which its events tell
            self._pipe.send(True)

    def kill(self) -> None:
        """Ends the process at once."""
        self._process.kill()

    def close(self) -> None:
        """Lets an idle process end."""
        self._pipe.close()


class Workers:
    """Takes and keeps workers.

    Args:
        site: of this machine.
        limits: of the server.
        set_up: called first in each process; must be picklable.
    """

    def __init__(self, site: Site, limits: Limits, set_up: Callable[[], object]) -> None:
        self._make = partial(Worker, site, limits, set_up)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def begin(self, number: int) -> tuple[Worker, socket.socket]:
        """Starts a session in the worker that was used last, or in a new one; gives our end of its conversation."""
        while (worker := self._idle_one()) is not None:
            with contextlib.suppress(OSError):  # it died meanwhile
                return worker, worker.begin(number)
            worker.close()
        worker = self._make()
        return worker, worker.begin(number)

    def warm_up(self) -> None:
        """Has a worker ready for the first client."""
        self.give_back(self._make())

    def give_back(self, worker: Worker) -> None:
        """Keeps a worker for the next session, or ends it where enough are idle."""
        with self._lock:
            if len(self._idle) < IDLE_WORKERS:
                self._idle.append(worker)
                return
        worker.close()

    def close(self) -> None:
        """Ends the idle workers."""
        with self._lock:
            for worker in self._idle:
                worker.close()
            self._idle.clear()

    def _idle_one(self) -> Worker | None:
        with self._lock:
            return self._idle.pop() if self._idle else None


def _how(code: int | None) -> str:
    if code is None:
        return "does not answer"
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    hint = ": the system ends processes so when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _serve(pipe: Pipe, site: Site, limits: Limits, set_up: Callable[[], object]) -> None:
    """The life of a worker; ends when the server closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the server decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    set_up()
    _bound_memory(limits.memory_bytes)
    turns = _Turns(pipe)
    while True:
        try:
            number = pipe.recv()
            sock = socket.socket(fileno=recv_handle(pipe))
        except EOFError:
            return
        with _session(number, sock, limits) as connection:
            conversation = Conversation(connection, site, limits, turns)
            with _telling(turns, conversation):
                outcome = conversation.run()
        turns.send(Ended(outcome))


@contextlib.contextmanager
def _session(number: int, sock: socket.socket, limits: Limits) -> Iterator[Connection]:
    with in_session(number, whole_process=True), sock, Connection(sock, limits.patience_s, limits.bounds) as connection:
        yield connection


class _Turns:
    """The worker's end of the pipe: asks for turns, and sends what else the server wants to know."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._sending = threading.Lock()

    def send(self, event: Event) -> None:
        """Of a server that is gone there is nobody left to serve: the process ends."""
        try:
            with self._sending:
                self._pipe.send(event)
        except OSError:
            os._exit(1)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.send(WantsTurn())
        try:
            self._pipe.recv()
        except EOFError:
            os._exit(1)
        try:
            yield
        finally:
            self.send(EndsTurn())


@contextlib.contextmanager
def _telling(turns: _Turns, conversation: Conversation) -> Iterator[None]:
    """Sends the progress of a conversation while it lasts, and once more at its end."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(PROGRESS_SECONDS):
            turns.send(conversation.progress())

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
        turns.send(conversation.progress())


def _bound_memory(more: int | None) -> None:
    """Allocations beyond the limit fail, in the session that asks for them."""
    if more is not None:
        limit = psutil.Process().memory_info().data + more
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
