"""Reads data messages in a thread of its own, so that they keep arriving while gadgets compute."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import ismrmrd

from pipelines.errors import MalformedMessage, PeerVanished, RemoteError
from pipelines.streams.buffer import ItemBuffer
from pipelines.wire import Close, Connection, ErrorText, Message, Text, describe

DATA = (ismrmrd.Acquisition, ismrmrd.Waveform, ismrmrd.Image)


class Receiver:
    """The data part of a conversation, from after the header to the close.

    Args:
        connection: nobody else receives from it meanwhile.
        limit: bytes of sample data held before the peer has to wait.
        on_text: takes texts that come among the data.
    """

    def __init__(self, connection: Connection, limit: int, on_text: Callable[[str], None]) -> None:
        self._connection = connection
        self._buffer = ItemBuffer(limit)
        self._on_text = on_text
        self._thread: threading.Thread | None = None
        self._vanished: PeerVanished | None = None

    @property
    def held_bytes(self) -> int:
        """Sample data that wait to be taken."""
        return self._buffer.held

    def following(self, first: Message) -> Iterator[object]:
        """The data messages from `first` on, up to the close.

        Raises:
            WireError: the conversation broke; raised after everything accepted before it was yielded.
        """
        self._thread = threading.Thread(target=self._receive, args=(first,), daemon=True)
        self._thread.start()
        yield from self._buffer

    def peer_has_ended(self) -> bool:
        """Whether the peer has ended its side after its close; it may still read.

        Raises:
            PeerVanished: it is gone, though what it sent before may still wait here.
        """
        if self._vanished is not None:
            raise self._vanished
        if self._thread is not None and self._thread.is_alive():
            return False  # the thread itself meets the end; asking now could wait for bytes that it took meanwhile
        return self._connection.peer_has_ended()

    def stop(self, seconds: float) -> None:
        """Drops what is held and waits for the peer to finish what it is sending; cuts it off after that time."""
        self._buffer.drop()
        if self._thread is None:
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._connection.cut()
            self._thread.join()

    def _receive(self, message: Message) -> None:
        try:
            while not isinstance(message, Close):
                self._accept(message)
                message = self._connection.receive()
            self._buffer.end()
        except PeerVanished as error:
            self._vanished = error
            self._buffer.end(error)
        except Exception as error:  # crosses to the working thread, which raises it
            self._buffer.end(error)

    def _accept(self, message: Message) -> None:
        if isinstance(message, DATA):
            self._buffer.put(message)
        elif isinstance(message, Text):
            self._on_text(message.text)
        elif isinstance(message, ErrorText):
            raise RemoteError(f"the peer reports: {message.text}")
        else:
            raise MalformedMessage(f"{describe(message)} came after the header; expected data or a close")
