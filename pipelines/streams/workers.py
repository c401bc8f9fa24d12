"""Processes in which sessions run, one at a time each: what crashes or hangs there takes nobody else along.

They are forked from one process that has loaded everything and computed nothing, which takes milliseconds where a fresh
interpreter takes seconds. A worker whose session ended well serves again, with what it has in its cache.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from multiprocessing.connection import Connection as Pipe
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
    """

    def __init__(self, setting: Setting, fresh: bool = False) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        if fresh:
            self._process: BaseProcess = multiprocessing.get_context("spawn").Process(
                target=_live, args=(theirs, setting), daemon=True
            )
        else:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["pipelines.streams.preload"])
            self._process = context.Process(target=_live, args=(theirs, setting), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, number: int) -> tuple[socket.socket, Whereabouts]:
        """Starts a session; gives our end of its conversation, and what tells what it is at.

        Raises:
            OSError: the process is gone.
        """
        if not self._process.is_alive():
            raise BrokenPipeError("the process is gone")
        ours, theirs = socket.socketpair()
        with theirs:
            self._pipe.send(number)
            whereabouts = Whereabouts()
            for descriptor in (theirs.fileno(), whereabouts.descriptor):
                send_handle(self._pipe, descriptor, self._process.pid or 0)
        return ours, whereabouts

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
        setting: of all their sessions.
        fresh: see `Worker`.
    """

    def __init__(self, setting: Setting, fresh: bool = False) -> None:
        self._make = partial(Worker, setting, fresh)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def begin(self, number: int) -> tuple[Worker, socket.socket, Whereabouts]:
        """Starts a session in the worker that was used last, or in a new one; see `Worker.begin`."""
        while (worker := self._idle_one()) is not None:
            with contextlib.suppress(OSError):  # it died meanwhile
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


def _how(code: int | None) -> str:
    if code is None:
        return "does not answer"
    if code >= 0:
        return f"ended with status {code}"
    name = signal.Signals(-code).name
    hint = ": the system ends processes so when memory runs out" if name == "SIGKILL" else ""
    return f"was ended by {name}{hint}"


def _live(pipe: Pipe, setting: Setting) -> None:
    """The life of a worker. What it computes with is loaded here: a server need not have it."""
    try:
        from pipelines.streams.worker_process import live
    except Exception as error:
        pipe.send(Died(f"cannot start: {type(error).__name__}: {error}"))
        raise
    live(pipe, setting)
