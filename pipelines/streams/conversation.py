"""One client's conversation, from its configuration to the close, as the process sees it in which its session runs."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import psutil

from pipelines.chain import At, Chain
from pipelines.definition import Definition, find_definition, parse_child_configuration, parse_definition
from pipelines.errors import MalformedMessage, PeerVanished, SpinstreamError, WireError
from pipelines.header import affordable, read_header
from pipelines.session import Site, open_chain
from pipelines.streams.limits import LAST_WORDS_SECONDS, Limits
from pipelines.streams.progress import Outcome, Progress
from pipelines.streams.receiver import Receiver
from pipelines.wire import (
    ERROR,
    NOTE,
    Close,
    ConfigFile,
    ConfigText,
    Connection,
    ErrorText,
    HeaderText,
    Message,
    Text,
    describe,
)

log = logging.getLogger("spinstream")

MessageT = TypeVar("MessageT", HeaderText, ConfigText)


@dataclass(eq=False)
class Conversation:
    """Serves one client.

    Args:
        connection: to the client.
        site: of this machine.
        limits: of the server.
        turn: entered while a gadget computes on a frame.
        whereabouts: told what each gadget is at.
    """

    connection: Connection
    site: Site
    limits: Limits
    turn: Callable[[], AbstractContextManager[object]]
    whereabouts: Callable[[str], object] = lambda words: None

    def __post_init__(self) -> None:
        self._receiver = Receiver(self.connection, self.limits.buffer_bytes, self._note_text)
        self._chain: Chain | None = None
        self._at: At | None = None
        self._silence_told = False

    def run(self) -> Outcome:
        """Whatever goes wrong is told to the client, logged, and ends here."""
        try:
            images = self._converse()
        except PeerVanished as error:
            log.error("%s", error)
            self._refuse(str(error))
            return Outcome.VANISHED
        except SpinstreamError as error:
            log.error("%s", error)
            self._refuse(str(error))
        except Exception as error:
            log.exception("a defect of spinstream")
            self._refuse(f"a defect of spinstream, please report it: {type(error).__name__}: {error}")
        else:
            log.info("done, %d images", images)
            return Outcome.DONE
        return Outcome.FAILED

    def progress(self) -> Progress:
        """How far it is; may be asked from another thread."""
        memory = psutil.Process().memory_info().rss
        chain, at = self._chain, self._at
        told = at and (at[0], at[1], time.monotonic() - at[2])
        if chain is None:
            return Progress(at=told, memory_bytes=memory)
        return Progress(
            acquisitions=chain.taken["Acquisition"],
            waveforms=chain.taken["Waveform"],
            frames=chain.frames,
            images=chain.let_out["Image"],
            gadgets={timing.gadget: (timing.seconds, timing.items) for timing in chain.timings},
            at=told,
            buffered_bytes=self._receiver.held_bytes,
            memory_bytes=memory,
        )

    def _watch(self, at: At | None) -> None:
        self._at = at
        self.whereabouts("" if at is None else f"{at[0]} was at work on {at[1]}")

    def _refuse(self, reason: str) -> None:
        """Tells the client why, then closes in a way that lets it read the reason."""
        try:
            self.connection.send(self._error(reason))
            self._close()
        except WireError as error:
            log.warning("the client did not hear this: %s", error)

    def _error(self, reason: str) -> Message:
        return Text(f"{ERROR}{reason}\n")

    def _close(self) -> None:
        self.connection.send(Close())
        self.connection.hang_up()
        self._receiver.stop(LAST_WORDS_SECONDS)
        self.connection.drain(LAST_WORDS_SECONDS)

    def _converse(self) -> int:
        definition = self._read_config()
        definition.build(self.site.registry)  # so that a client that waits for an answer hears at once what is wrong
        header = read_header(self._expect(HeaderText).xml, self.limits.bounds)
        first = self.connection.receive()
        if isinstance(first, Text) and (parameters := fire_parameters(first.text)) is not None:
            definition = self._apply(definition, parameters)
            first = self.connection.receive()
        chain = open_chain(definition, header, self.site, self._tell, self._require_client, self.turn, self._watch)
        self._chain = chain
        for item in chain.run(affordable(self._receiver.following(first), header, self.limits.bounds)):
            self.connection.send(item)
        self._tell(f"times: {chain.report()}")
        self._close()
        return chain.let_out["Image"]

    def _read_config(self) -> Definition:
        message = self.connection.receive()
        if isinstance(message, ConfigFile):
            return find_definition(message.name, self.site.definitions)
        if isinstance(message, ConfigText):
            return parse_definition(message.xml.encode(), "config text", local=False, bounds=self.limits.bounds)
        raise MalformedMessage(f"expected a config file (1) or config text (2) first, got {describe(message)}")

    def _expect(self, kind: type[MessageT]) -> MessageT:
        message = self.connection.receive()
        if not isinstance(message, kind):
            what = "the MRD header (3) after the configuration" if kind is HeaderText else "the configuration (2) first"
            raise MalformedMessage(f"expected {what}, got {describe(message)}")
        return message

    def _apply(self, definition: Definition, parameters: dict[str, str]) -> Definition:
        ours = {key: value for key, value in parameters.items() if "." in key}
        others = sorted(parameters.keys() - ours.keys())
        if others:
            self._tell(f"parameters that are not gadget.property were not used: {', '.join(others)}")
        return definition.override(ours, "parameters", local=False, bounds=self.limits.bounds)

    def _tell(self, text: str) -> None:
        log.info("%s", text)
        self.connection.send(Text(f"{NOTE}{text}\n"))  # C++ clients print it as it is

    def _require_client(self) -> None:
        if self._receiver.peer_has_ended() and not self._silence_told:
            # It may still read. If it has closed its socket, the answer to this shows at the next call.
            self._silence_told = True
            self._tell("the client sends no more; images still follow")

    def _note_text(self, text: str) -> None:
        log.info("the client sent a text of %d characters", len(text))  # it may speak of the patient


class ChildConversation(Conversation):
    """With Gadgetron as its parent, which takes errors and images only: a text from a child ends the whole run."""

    def _read_config(self) -> Definition:
        return parse_child_configuration(self._expect(ConfigText).xml.encode())

    def _tell(self, text: str) -> None:
        log.info("%s", text)

    def _require_client(self) -> None:
        if self._receiver.peer_has_ended():  # Gadgetron keeps its side open until it has our close
            raise PeerVanished("Gadgetron is gone")

    def _error(self, reason: str) -> Message:
        return ErrorText(f"spinstream: {reason}")


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
        raise MalformedMessage(f'"parameters" must be an object of names and values, got a {type(parameters).__name__}')
    return {str(key): _plain(key, value) if "." in str(key) else "" for key, value in parameters.items()}


def _plain(key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    raise MalformedMessage(f"parameter {key}: expected text, a number, true or false, got a {type(value).__name__}")
