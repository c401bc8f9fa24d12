"""A client of any MRD server: ours, Gadgetron's, python-ismrmrd-server's."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Mapping

import ismrmrd

from pipelines.errors import PeerVanished, RemoteError, WireError
from pipelines.streams.tls import wrapped
from pipelines.wire import (
    ERROR,
    LOGGING,
    NOTE,
    Close,
    ConfigFile,
    ConfigText,
    Connection,
    ErrorText,
    HeaderText,
    Message,
    Text,
)

log = logging.getLogger("spinstream")

CONNECT_SECONDS = 10.0
LINGER_SECONDS = 1.0


def stream(
    address: tuple[str, int],
    config: ConfigFile | ConfigText,
    header_xml: str,
    items: Iterable[Message],
    on_item: Callable[[ismrmrd.Image], None],
    on_note: Callable[[str], None],
    parameters: Mapping[str, str] | None = None,
    patience_s: float | None = None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Sends a measurement and hands over what comes back, until both sides have closed.

    Args:
        address: host and port.
        config: which pipeline.
        header_xml: the MRD header.
        items: acquisitions and waveforms, sent from a thread of their own.
        on_item: takes each image, acquisition or waveform that comes back.
        on_note: takes what the server tells.
        parameters: properties to set, by "gadget.property".
        patience_s: seconds to wait for the server at any one time; None waits for ever.
        tls: how to speak TLS, see `client_context`; None speaks plain.

    Raises:
        WireError: the server cannot be reached, vanished, closed before it had taken everything, or reported an error
            (all its texts are in the message).
        Exception: what `items` or `on_item` raise.
    """
    with _connect(address, tls) as sock, Connection(sock, patience_s) as connection:
        sender = _Sender(connection, [config, HeaderText(header_xml), *_parameter_texts(parameters)], items)
        sender.start()
        failures: list[str] = []
        try:
            _receive(connection, on_item, on_note, failures)
        except PeerVanished as error:
            failures.append(str(error))
        finally:
            sender.stop()
        if sender.error is not None and not isinstance(sender.error, WireError):
            raise sender.error
        if failures:
            raise RemoteError("; ".join(failures))
        if sender.error is not None:
            raise sender.error
        if not sender.complete:
            raise PeerVanished("the server closed before it had taken all the data, and did not say why")


def _connect(address: tuple[str, int], tls: ssl.SSLContext | None) -> socket.socket:
    try:
        sock = socket.create_connection(address, CONNECT_SECONDS)
    except OSError as error:
        raise WireError(f"no server answers at {address[0]}:{address[1]}: {error.strerror or error}") from error
    try:
        return sock if tls is None else wrapped(sock, tls, address[0])
    except WireError as error:
        raise WireError(f"{address[0]}:{address[1]}: {error}") from error


def _parameter_texts(parameters: Mapping[str, str] | None) -> list[Message]:
    return [Text(json.dumps({"parameters": dict(parameters)}))] if parameters else []


def _receive(
    connection: Connection,
    on_item: Callable[[ismrmrd.Image], None],
    on_note: Callable[[str], None],
    failures: list[str],
) -> None:
    while not isinstance(message := connection.receive(), Close):
        if isinstance(message, ErrorText):
            failures.append(message.text.strip())
        elif isinstance(message, Text):
            text = message.text.strip()
            if text.startswith((NOTE, *LOGGING)):
                on_note(text.removeprefix(NOTE))
            else:
                failures.append(text.removeprefix(ERROR))
        elif isinstance(message, (ConfigFile, ConfigText, HeaderText)):
            log.warning("the server sent a %s, which servers do not; not used", type(message).__name__)
        else:
            on_item(message)


class _Sender(threading.Thread):
    """Sends while the main thread receives: a server that waits for us to read must not stop us from sending."""

    def __init__(self, connection: Connection, opening: list[Message], items: Iterable[Message]) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._opening = opening
        self._items = items
        self._stopped = threading.Event()
        self.error: Exception | None = None
        self.complete = False

    def run(self) -> None:
        try:
            for message in self._opening:
                self._connection.send(message)
            for message in self._items:
                if self._stopped.is_set():
                    return
                self._connection.send(message)
            self._connection.send(Close())
            self.complete = True
        except Exception as error:  # raised by the main thread once it has heard what the server says about it
            self.error = error
            self._connection.hang_up()

    def stop(self) -> None:
        """Ends the sending; what is under way is cut off, and a source that sleeps to keep its pace is left to it."""
        self._stopped.set()
        self._connection.hang_up()
        self.join(LINGER_SECONDS)
