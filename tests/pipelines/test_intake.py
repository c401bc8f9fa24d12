"""From a client to the journal and to a worker, byte by byte."""

from __future__ import annotations

import contextlib
import os
import socket
import threading

import pytest

from pipelines.errors import FileError
from pipelines.streams.intake import Intake
from pipelines.streams.journal import Journal

SENT = os.urandom(8 << 20)


class Line:
    """A client, an intake in a thread of its own, and a worker's end that nobody reads until the test does."""

    def __init__(self, journal: Journal | None) -> None:
        self.client, self._their_client = socket.socketpair()
        self._their_worker, self.worker = socket.socketpair()
        self.lost: list[FileError] = []
        self.failed: list[Exception] = []
        self._intake = Intake(self._their_client, self._their_worker, journal, self.lost.append)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._intake.run(lambda silence: False)
        except OSError as error:
            self.failed.append(error)
        with contextlib.suppress(OSError):  # the test has let go of the other end
            self._their_worker.shutdown(socket.SHUT_WR)

    def send(self, data: bytes = SENT, seconds: float = 10.0) -> None:
        self.client.settimeout(seconds)
        self.client.sendall(data)

    def end(self) -> None:
        self.client.shutdown(socket.SHUT_WR)

    def worker_gets(self) -> bytes:
        """All up to the end."""
        self.worker.settimeout(10.0)
        return b"".join(iter(lambda: self.worker.recv(1 << 20), b""))

    def close(self) -> None:
        self.client.close()
        self.worker.close()
        self._thread.join(10.0)
        self._their_client.close()
        self._their_worker.close()


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "a.mrd")
    yield journal
    journal.close()


@pytest.fixture
def line(request, journal):
    line = Line(journal)
    yield line
    line.close()


@pytest.fixture
def unrecorded():
    line = Line(None)
    yield line
    line.close()


def test_a_client_does_not_wait_for_a_worker_that_is_busy(line, journal):
    line.send()
    line.end()
    assert line.worker_gets() == SENT
    assert journal.path.read_bytes() == SENT


def test_where_nothing_is_recorded_it_waits_and_memory_is_bounded(unrecorded):
    with pytest.raises(TimeoutError):
        unrecorded.send(seconds=0.5)
    unrecorded.end()
    got = unrecorded.worker_gets()
    assert SENT.startswith(got)
    assert len(got) > 1 << 17


def test_what_a_full_disk_does_not_take_reaches_the_worker_all_the_same(line, journal, monkeypatch):
    def write(descriptor, data, write=os.write):
        room = 3_000_001 - journal.size
        if not room:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:room])

    monkeypatch.setattr(os, "write", write)
    sender = threading.Thread(target=lambda: (line.send(), line.end()))
    sender.start()
    assert line.worker_gets() == SENT
    sender.join()
    assert journal.path.read_bytes() == SENT[:3_000_001]
    assert len(line.lost) == 1


def test_what_comes_after_the_worker_has_gone_is_recorded(line, journal):
    line.send(SENT[:1000])
    assert line.worker.recv(1000) == SENT[:1000]
    line.worker.close()
    line.send(SENT[1000:])
    line.end()
    line._thread.join(10.0)
    assert journal.path.read_bytes() == SENT


def test_no_byte_waits_for_the_next(line):
    for part in (SENT[:1], SENT[1:3], SENT[3:4]):
        line.send(part)
        line.worker.settimeout(2.0)
        assert line.worker.recv(10) == part
