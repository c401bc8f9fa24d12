"""Processes in which sessions run, one at a time each: what crashes or hangs there takes nobody else along.

They are forked from one process that has loaded everything and computed nothing, which takes milliseconds where a fresh
interpreter takes seconds. A worker whose session ended well serves again, with what it has in its cache.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import send_handle
from typing import TYPE_CHECKING

from pipelines.streams.limits import Limits
from pipelines.streams.progress import Outcome, Progress
from pipelines.streams.whereabouts import Whereabouts

if TYPE_CHECKING:
    from pipelines.session import Site

IDLE_WORKERS = 2
END_SECONDS = 5.0
ATTEMPTS = (0.1, 1.0, 0.0)


class Peer(Enum):
    """Whom a worker speaks with."""

    CLIENT = "client"
    GADGETRON = "Gadgetron"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all sessions of a worker have in common; must be picklable.

    Attributes:
        site: of this machine; None for the usual one, which then need not be loaded here.
        limits: of the server.
        set_up: called first in the process.
        peer: whom it speaks with.
    """

    site: Site | None = None
    limits: Limits = field(default_factory=Limits)
    set_up: Callable[[], object] = object
    peer: Peer = Peer.CLIENT


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
        setting: of its sessions.
        fresh: whether it is an interpreter of its own, instead of a fork of one that has loaded everything.

    Raises:
        OSError: the system has no room for one more process.
    """

    def __init__(self, setting: Setting, fresh: bool = False) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        with theirs:
            self._process = _started(setting, theirs, fresh)
        # The process itself: its number may become another's, and a child of it may keep its end of the pipe open.
        self._itself = os.pidfd_open(self._process.pid or 0)

    def begin(self, number: int) -> tuple[socket.socket, Whereabouts]:
        """Starts a session; gives our end of its conversation, and what tells what it is at.

        Raises:
            BrokenPipeError: the process is gone.
            OSError: the system has no room for what a session takes.
        """
        if self._gone(0.0):
            raise BrokenPipeError("the process is gone")
        with contextlib.ExitStack() as unless_begun:
            whereabouts = unless_begun.enter_context(contextlib.closing(Whereabouts()))
            ours, theirs = socket.socketpair()
            unless_begun.enter_context(ours)
            with theirs:
                self._pipe.send(number)
                for descriptor in (theirs.fileno(), whereabouts.descriptor):
                    send_handle(self._pipe, descriptor, self._process.pid or 0)
            unless_begun.pop_all()
        return ours, whereabouts

    def events(self, seconds: float) -> Iterator[Event | None]:
        """What happens in the session; None where nothing does for that long; the last is `Ended` or `Died`."""
        event: Event | None = None
        while not isinstance(event, (Ended, Died)):
            event = self._event(seconds)
            yield event

    def _event(self, seconds: float) -> Event | None:
        wait([self._pipe, self._itself], seconds)
        try:
            if self._pipe.poll():
                received: Event = self._pipe.recv()
                return received
        except (EOFError, OSError):
            self.kill()  # it has closed its end, and is of no more use
            self._gone(END_SECONDS)
        return Died(_how(self._exit_code())) if self._gone(0.0) else None

    def grant_turn(self) -> None:
        """Answers `WantsTurn`."""
        with contextlib.suppress(OSError):  # it died meanwhile, which its events tell
            self._pipe.send(True)

    def kill(self) -> None:
        """Ends the process at once."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._itself, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process, in which nothing is wanted any more, and lets go of it."""
        self.kill()
        self._pipe.close()
        os.close(self._itself)

    def _gone(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._itself, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def _exit_code(self) -> int | None:
        wait([self._process.sentinel], END_SECONDS)  # the process that it was forked from writes the code there
        with _PROCESSES:
            return self._process.exitcode


_PROCESSES = threading.Lock()
"""Held while the package looks after its processes: of two threads that ask, one would get a wrong exit code."""


def _started(setting: Setting, pipe: Pipe, fresh: bool) -> BaseProcess:
    """Once more, if the process that it is forked from has died: the package starts another one then.

    Raises:
        OSError: the system has no room for one more process.
    """
    for pause in ATTEMPTS:
        process = _process(setting, pipe, fresh)
        try:
            with _PROCESSES:
                process.start()
        except (EOFError, ConnectionError):
            time.sleep(pause)
        else:
            return process
    raise ConnectionAbortedError("the process that others are forked from does not answer")


def _process(setting: Setting, pipe: Pipe, fresh: bool) -> BaseProcess:
    if fresh:
        return multiprocessing.get_context("spawn").Process(target=_live, args=(pipe, setting), daemon=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipelines.streams.preload"])
    return context.Process(target=_live, args=(pipe, setting), daemon=True)


class Workers:
    """Takes and keeps workers.

    Args:
        setting: of all their sessions.
        fresh: see `Worker`.
    """

    def __init__(self, setting: Setting, fresh: bool = False) -> None:
        self._make = partial(Worker, setting, fresh)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def begin(self, number: int) -> tuple[Worker, socket.socket, Whereabouts]:
        """Starts a session in the worker that was used last, or in a new one; see `Worker.begin`.

        Raises:
            OSError: the system has no room for one more process, or for what a session takes.
        """
        while (worker := self._idle_one()) is not None:
            with contextlib.suppress(ConnectionError):  # it died meanwhile
                return worker, *worker.begin(number)
            worker.close()
        worker = self._make()
        return worker, *worker.begin(number)

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


UNKNOWN = 255
"""The exit code that the package gives where it does not know better."""


def _how(code: int | None) -> str:
    if code is None or code == UNKNOWN:
        return "has died"
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    hint = " (the system ends processes so when memory runs out)" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _live(pipe: Pipe, setting: Setting) -> None:
    """The life of a worker. What it computes with is loaded here: a server need not have it."""
    try:
        from pipelines.streams.worker_process import live
    except Exception as error:
        pipe.send(Died(f"cannot start: {type(error).__name__}: {error}"))
        raise
    live(pipe, setting)
