"""The reading thread and those who ask for the peer meanwhile."""

import select
import socket

from pipelines.streams.receiver import Receiver
from pipelines.wire import Close, Connection

from mrd_items import acquisition


class TakenMeanwhile:
    """A poll that saw bytes which the reading thread has taken since."""

    def register(self, sock, events):
        self.number = sock.fileno()

    def poll(self, timeout):
        return [(self.number, select.POLLIN)]


def test_who_asks_for_a_peer_that_still_sends_does_not_wait_for_its_bytes(monkeypatch):
    """That would take until the peer's patience is over, and call it gone."""
    here, there = socket.socketpair()
    with here, there, Connection(here, 0.5) as connection, Connection(there) as peer:
        receiver = Receiver(connection, 1 << 20, print)
        items = receiver.following(acquisition(0))
        assert next(items).scan_counter == acquisition(0).scan_counter
        monkeypatch.setattr(select, "poll", TakenMeanwhile)
        assert not receiver.peer_has_ended()
        peer.send(Close())
        assert list(items) == []
