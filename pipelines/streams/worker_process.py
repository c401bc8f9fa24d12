"""The process in which sessions run, as it sees itself."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection as Pipe
from multiprocessing.reduction import recv_handle
from typing import NoReturn

import psutil
import torch

from pipelines.logs import in_session
from pipelines.session import Site
from pipelines.streams.conversation import ChildConversation, Conversation
from pipelines.streams.limits import Limits
from pipelines.streams.whereabouts import Whereabouts
from pipelines.streams.workers import Ended, EndsTurn, Event, Peer, Setting, WantsTurn
from pipelines.wire import Connection

PROGRESS_SECONDS = 1.0


CONVERSATIONS = {Peer.CLIENT: Conversation, Peer.GADGETRON: ChildConversation}


def live(pipe: Pipe, setting: Setting) -> NoReturn:
    """The life of a worker; ends when the server closes its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the server decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    setting.set_up()
    _bound_memory(setting.limits.memory_bytes)
    site = setting.site or Site()
    turns = _Turns(pipe)
    while True:
        try:
            number = pipe.recv()
            sock, whereabouts = socket.socket(fileno=recv_handle(pipe)), Whereabouts(recv_handle(pipe))
        except (EOFError, OSError):  # the server has ended, or was killed
            os._exit(0)  # whatever threads a gadget has left behind
        with _session(number, sock, setting.limits) as connection, contextlib.closing(whereabouts):
            speak = CONVERSATIONS[setting.peer]
            conversation = speak(connection, site, setting.limits, turns, whereabouts.write)
            with _telling(turns, conversation):
                outcome = conversation.run()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.empty_cache()  # others may need what an idle process holds
        turns.send(Ended(outcome))


@contextlib.contextmanager
def _session(number: int, sock: socket.socket, limits: Limits) -> Iterator[Connection]:
    # How long a client may take to read is for the server to say, which sees it: here, only the server would be judged.
    with (
        in_session(number, whole_process=True),
        sock,
        Connection(sock, limits.patience_s, limits.bounds, sends_wait=True) as connection,
    ):
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
        except (EOFError, OSError):
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
