"""What a client sends goes to the journal at once, and to the worker as it takes it.

While the worker is busy, the journal is the queue: a scanner need not wait, and what it sends is safe whether or not it
is ever computed. Where nothing is recorded, the client has to wait instead, and memory stays bounded. A worker that is
behind learns that its client has gone when it has caught up, or when it sends something.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable

from pipelines.errors import FileError
from pipelines.streams.journal import Journal

CHUNK = 1 << 18
WATCH_SECONDS = 0.5


class Intake:
    """From one client to one worker.

    Args:
        client: its socket.
        worker: our end of the worker's conversation, which is never waited for; None where there is no worker.
        journal: None where nothing is recorded.
        lost: called with the reason when the recording has to stop.
    """

    def __init__(
        self,
        client: socket.socket,
        worker: socket.socket | None,
        journal: Journal | None,
        lost: Callable[[FileError], object],
    ) -> None:
        self._client = client
        self._worker = worker
        self._journal = journal
        self._lost = lost
        self._passed = 0  # bytes of the journal that the worker has
        self._unrecorded = b""  # behind those of the journal; the worker has not got them either
        self._worker_listens = worker is not None

    def run(self, is_over: Callable[[float], bool]) -> None:
        """Until the client has ended its side and the worker has all, or has ended its own.

        Args:
            is_over: asked, with the seconds since the client sent something, whether nothing more is expected of it.

        Raises:
            OSError: the connection to the client broke; the worker has all that came before it.
            FileError: what the worker has not got yet cannot be read back.
        """
        view = memoryview(bytearray(CHUNK))
        heard, count, broken = time.monotonic(), 1, None
        while (count or self._waiting) and not is_over(time.monotonic() - heard):
            readable, writable = self._ready(bool(count))
            if writable:
                self._pass_on()
            if readable:
                heard = time.monotonic()
                try:
                    count = self._client.recv_into(view)
                except OSError as error:
                    count, broken = 0, error
                self.take(view[:count])
        if broken is not None:
            raise broken

    def take(self, data: memoryview) -> None:
        """Records bytes, and gives the worker what it takes of them now."""
        behind = self._waiting
        recorded = self._record(data)
        passed = 0 if behind else self._offer(data)
        self._passed += min(passed, recorded)
        self._unrecorded += bytes(data[max(passed, recorded) :])

    @property
    def backlog(self) -> int:
        """Bytes that the worker has not got, and still takes."""
        return self._unread + len(self._unrecorded) if self._worker_listens else 0

    @property
    def _waiting(self) -> bool:
        """Whether there is something that the worker has not got."""
        return bool(self.backlog)

    @property
    def _unread(self) -> int:
        """Bytes of the journal that the worker has not got."""
        return 0 if self._journal is None else self._journal.size - self._passed

    def _ready(self, client_speaks: bool) -> tuple[bool, bool]:
        """Waits until the client can be read or the worker written to: whether each can."""
        poll = select.poll()
        recording = self._journal is not None and not self._journal.stopped
        if client_speaks and (recording or not self._waiting):
            poll.register(self._client, select.POLLIN)
        if self._worker is not None and self._waiting:
            poll.register(self._worker, select.POLLOUT)
        ready = {descriptor for descriptor, _ in poll.poll(WATCH_SECONDS * 1000)}
        return self._client.fileno() in ready, bool(ready - {self._client.fileno()})

    def _record(self, data: memoryview) -> int:
        """How many of the bytes are in the journal."""
        if self._journal is None:
            return 0
        before = self._journal.size
        try:
            self._journal.write(data)
        except FileError as error:
            self._lost(error)
        return self._journal.size - before

    def _pass_on(self) -> None:
        """Gives the worker what it takes of what it has not got."""
        while self._journal is not None and self._unread and self._worker_listens:
            data = self._journal.read(self._passed, CHUNK)
            if not data:
                raise FileError(f"{self._journal.path}: {self._unread} bytes that were written are not there any more")
            taken = self._offer(memoryview(data))
            self._passed += taken
            if taken < len(data):
                return
        self._unrecorded = self._unrecorded[self._offer(memoryview(self._unrecorded)) :]

    def _offer(self, data: memoryview) -> int:
        """How many bytes the worker takes, without waiting for it; all, once it listens no more."""
        if self._worker is None or not self._worker_listens or not data:
            return len(data)
        try:
            return self._worker.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            self._worker_listens = False
            return len(data)
