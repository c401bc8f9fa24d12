"""The embedded server: speaks Gadgetron's protocol to Gadgetron's and FIRE's clients, one thread pair per session."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import socket
import socketserver
import threading
import time
from dataclasses import dataclass

import ismrmrd

from pipelines.definition import Definition, find_definition, parse_definition
from pipelines.errors import MalformedMessage, SpinstreamError, WireError
from pipelines.session import Site, open_chain, read_header
from pipelines.streams.receiver import Receiver
from pipelines.wire import ERROR, NOTE, Close, ConfigFile, ConfigText, Connection, HeaderText, Text, describe

log = logging.getLogger("spinstream")

LAST_WORDS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one session may take.

    Attributes:
        patience_s: seconds without a byte, either way, after which the session ends; None waits for ever.
        buffer_bytes: sample data held while gadgets are busy; then the client has to wait.
        sessions: sessions at a time; one more is refused with the reason.
    """

    patience_s: float | None = 600.0
    buffer_bytes: int = 256 << 20
    sessions: int = 16


class Server(socketserver.ThreadingTCPServer):
    """Accepts clients until `shutdown`; each session is isolated from the others.

    Args:
        host: address to listen on.
        port: 0 picks a free one; see `server_address`.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, site: Site | None = None, limits: Limits | None = None) -> None:
        self.site = site or Site()
        self.limits = limits or Limits()
        self.numbers = itertools.count(1)
        self.places = threading.BoundedSemaphore(self.limits.sessions)
        self.sessions: set[ServerSession] = set()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def dismiss(self, seconds: float) -> bool:
        """Tells the clients of running sessions that the server stops, and ends their connections.

        Returns:
            Whether all sessions have ended within that time; a gadget that computes is interrupted only where it asks
            for its client.
        """
        for session in list(self.sessions):
            session.dismiss()
        deadline = time.monotonic() + seconds
        while self.sessions and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.sessions


class _Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        limits = self.server.limits
        with Connection(self.request, limits.patience_s) as connection:
            session = ServerSession(connection, next(self.server.numbers), self.server.site, limits)
            if not self.server.places.acquire(blocking=False):
                session.refuse(f"all {limits.sessions} sessions of this server are in use; try again later")
                return
            self.server.sessions.add(session)
            try:
                session.run()
            finally:
                self.server.sessions.discard(session)
                self.server.places.release()


@dataclass(eq=False)
class ServerSession:
    """One client's conversation, from its configuration to the close."""

    connection: Connection
    number: int
    site: Site
    limits: Limits

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.connection, self.limits.buffer_bytes, self._note_text)
        self._silence_told = False

    def run(self) -> None:
        """Serves the client; whatever goes wrong is told to the client, logged, and ends here."""
        try:
            images = self._converse()
            log.info("session %d: done, %d images", self.number, images)
        except SpinstreamError as error:
            log.error("session %d: %s", self.number, error)
            self.refuse(str(error))
        except Exception as error:
            log.exception("session %d: a defect of spinstream", self.number)
            self.refuse(f"a defect of spinstream, please report it: {type(error).__name__}: {error}")

    def dismiss(self) -> None:
        """Says that the server stops, and cuts the connection; called from another thread than `run`."""
        with contextlib.suppress(WireError):
            self.connection.send(Text(f"{ERROR}the server is being stopped\n"))
            self.connection.send(Close())
        self.connection.cut()

    def refuse(self, reason: str) -> None:
        """Tells the client why, then closes in a way that lets it read the reason."""
        try:
            self.connection.send(Text(f"{ERROR}{reason}\n"))
            self._close()
        except WireError as error:
            log.warning("session %d: the client did not hear this: %s", self.number, error)

    def _close(self) -> None:
        self.connection.send(Close())
        self.connection.hang_up()
        self.receiver.stop(LAST_WORDS_SECONDS)
        self.connection.drain(LAST_WORDS_SECONDS)

    def _converse(self) -> int:
        definition = self._read_config()
        definition.build(self.site.registry)  # so that a client that waits for an answer hears at once what is wrong
        header = read_header(self._expect(HeaderText).xml)
        first = self.connection.receive()
        if isinstance(first, Text) and (parameters := fire_parameters(first.text)) is not None:
            definition = self._apply(definition, parameters)
            first = self.connection.receive()
        chain = open_chain(definition, header, self.site, self._tell, self._require_client)
        images = 0
        for item in chain.run(self.receiver.following(first)):
            self.connection.send(item)
            images += isinstance(item, ismrmrd.Image)
        self._tell(f"times: {chain.report()}")
        self._close()
        return images

    def _read_config(self) -> Definition:
        message = self.connection.receive()
        if isinstance(message, ConfigFile):
            return find_definition(message.name, self.site.definitions)
        if isinstance(message, ConfigText):
            return parse_definition(message.xml.encode(), "config text", local=False)
        raise MalformedMessage(f"expected a config file (1) or config text (2) first, got {describe(message)}")

    def _expect(self, kind: type[HeaderText]) -> HeaderText:
        message = self.connection.receive()
        if not isinstance(message, kind):
            raise MalformedMessage(f"expected the MRD header (3) after the configuration, got {describe(message)}")
        return message

    def _apply(self, definition: Definition, parameters: dict[str, str]) -> Definition:
        ours = {key: value for key, value in parameters.items() if "." in key}
        others = sorted(parameters.keys() - ours.keys())
        if others:
            self._tell(f"parameters that are not gadget.property were not used: {', '.join(others)}")
        return definition.override(ours, "parameters", local=False)

    def _tell(self, text: str) -> None:
        log.info("session %d: %s", self.number, text)
        self.connection.send(Text(f"{NOTE}{text}\n"))  # C++ clients print it as it is

    def _require_client(self) -> None:
        if self.receiver.peer_has_ended() and not self._silence_told:
            # It may still read. If it has closed its socket, the answer to this shows at the next call.
            self._silence_told = True
            self._tell("the client sends no more; images still follow")

    def _note_text(self, text: str) -> None:
        log.info("session %d: the client says: %s", self.number, text)


def fire_parameters(text: str) -> dict[str, str] | None:
    """The parameters of a FIRE-style JSON text, as text; None when it is not one.

    Those of other programs, whose names hold no gadget, come without a value.

    Raises:
        MalformedMessage: it is one, but its parameters are not a flat object.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or "parameters" not in document:
        return None
    parameters = document["parameters"]
    if not isinstance(parameters, dict):
        raise MalformedMessage(f'"parameters" must be an object of names and values, got {parameters!r}')
    return {str(key): _plain(key, value) if "." in str(key) else "" for key, value in parameters.items()}


def _plain(key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise MalformedMessage(f"parameter {key}: expected text, a number, true or false, got {value!r}")
