"""What a worker leaves behind that is lost just as a session is handed to it; the rest is in test_server_faults.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.streams.workers import Worker


class LostPipe:
    """Of a process that has died after it was looked at."""

    def send(self, message):
        raise BrokenPipeError


def test_a_session_that_cannot_begin_leaves_nothing_open():
    worker = Worker.__new__(Worker)
    worker._pipe, worker._itself = LostPipe(), os.pidfd_open(os.getpid())
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(BrokenPipeError) as caught:  # which keeps what the failed call held
        worker.begin(1)
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert caught
    os.close(worker._itself)
