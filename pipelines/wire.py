"""The MRD streaming protocol on a socket: messages in, messages out, nothing about what they mean.

Every message is a little-endian uint16 id and a body. Control messages are the small classes below; acquisitions,
waveforms and images are the `ismrmrd` package's types.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from io import BufferedIOBase
from typing import Any, TypeAlias, cast

import ismrmrd
import numpy as np
import numpy.typing as npt
from ismrmrd.acquisition import AcquisitionHeader
from ismrmrd.image import ImageHeader
from ismrmrd.waveform import WaveformHeader

from pipelines.bounds import BOUNDS, MEBIBYTE, Bounds
from pipelines.errors import MalformedMessage, PeerIdle, PeerVanished
from pipelines.safe_xml import parse_xml


class MessageId(IntEnum):
    """The ids that spinstream reads."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ERROR = 8
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


@dataclass(frozen=True)
class ConfigFile:
    """The name of a pipeline that the server knows."""

    name: str


@dataclass(frozen=True)
class ConfigText:
    """A pipeline definition as XML."""

    xml: str


@dataclass(frozen=True)
class HeaderText:
    """The MRD header as XML."""

    xml: str


@dataclass(frozen=True)
class Text:
    """A message for people, or FIRE-style JSON parameters."""

    text: str


@dataclass(frozen=True)
class ErrorText:
    """The sender failed."""

    text: str


@dataclass(frozen=True)
class Close:
    """Nothing more will be sent."""


Message: TypeAlias = (
    ConfigFile
    | ConfigText
    | HeaderText
    | Text
    | ErrorText
    | Close
    | ismrmrd.Acquisition
    | ismrmrd.Waveform
    | ismrmrd.Image
)

# Our server marks its texts. Others send texts only when something failed, but for python-ismrmrd-server's log lines.
NOTE = "note: "
ERROR = "error: "
LOGGING = ("DEBUG ", "INFO ", "WARNING ")

CONFIG_FILE_BYTES = 1024
READ_BUFFER = MEBIBYTE // 4

AT_ONCE = 4 * MEBIBYTE
"""Memory that is taken for a message before any of its bytes have come; beyond, no more than has come already."""

# The `ismrmrd` package maps the 4-byte integer type to the platform's int, which is not what stands on the wire.
IMAGE_TYPES: dict[int, np.dtype[Any]] = {
    ismrmrd.DATATYPE_USHORT: np.dtype("<u2"),
    ismrmrd.DATATYPE_SHORT: np.dtype("<i2"),
    ismrmrd.DATATYPE_UINT: np.dtype("<u4"),
    ismrmrd.DATATYPE_INT: np.dtype("<i4"),
    ismrmrd.DATATYPE_FLOAT: np.dtype("<f4"),
    ismrmrd.DATATYPE_DOUBLE: np.dtype("<f8"),
    ismrmrd.DATATYPE_CXFLOAT: np.dtype("<c8"),
    ismrmrd.DATATYPE_CXDOUBLE: np.dtype("<c16"),
}


class MessageReader:
    """Messages from a stream of bytes: a socket's, or a journal's.

    Args:
        stream: the caller closes it.
        patience: seconds after which reading from the stream times out, for the error that says so.
        bounds: of what a message may announce.
    """

    def __init__(self, stream: BufferedIOBase, patience: float | None = None, bounds: Bounds = BOUNDS) -> None:
        self._stream = stream
        self._patience = patience
        self._bounds = bounds
        self._readers: dict[int, Callable[[], Message]] = {
            MessageId.CONFIG_FILE: self._read_config_file,
            MessageId.CONFIG_TEXT: lambda: ConfigText(self._read_text("<I")),
            MessageId.HEADER: lambda: HeaderText(self._read_text("<I")),
            MessageId.CLOSE: Close,
            MessageId.TEXT: lambda: Text(self._read_text("<I")),
            MessageId.ERROR: lambda: ErrorText(self._read_text("<Q")),
            MessageId.ACQUISITION: self._read_acquisition,
            MessageId.WAVEFORM: self._read_waveform,
            MessageId.IMAGE: self._read_image,
        }

    def read(self) -> Message:
        """The next message.

        Raises:
            MalformedMessage: unknown id, absurd length, or a body that contradicts its header.
            PeerVanished: the stream ended without a close message.
            PeerIdle: the peer sent nothing for longer than the patience.
        """
        number = self._number("<H", "a message id")
        reader = self._readers.get(number)
        if reader is None:
            known = ", ".join(f"{m.value} {m.name.lower()}" for m in MessageId)
            raise MalformedMessage(f"message id {number} is not known here; expected one of {known}")
        return reader()

    def _read(self, count: int, what: str) -> bytearray:
        body, got = bytearray(min(count, AT_ONCE)), 0
        while got < count:
            body += bytes(min(count, 2 * got) - len(body)) if got else b""
            with memoryview(body) as view:
                self._fill(view, got, count, what)
            got = len(body)
        return body

    def _fill(self, buffer: memoryview, got: int, count: int, what: str) -> None:
        """Reads from byte `got` to the end of the buffer, which may be less than the `count` bytes of the whole."""
        try:
            while got < len(buffer):
                read = self._stream.readinto(buffer[got:])
                if not read:
                    raise PeerVanished(f"the connection ended after {got} of {count} bytes of {what}")
                got += read
        except TimeoutError:
            raise PeerIdle(f"nothing came for {self._patience:g} s while waiting for {what}") from None
        except OSError as error:
            raise PeerVanished(f"the connection broke while waiting for {what}: {error.strerror or error}") from error

    def _number(self, layout: str, what: str) -> int:
        value: int
        (value,) = struct.unpack(layout, self._read(struct.calcsize(layout), what))
        return value

    def _read_config_file(self) -> ConfigFile:
        return ConfigFile(_decode(bytes(self._read(CONFIG_FILE_BYTES, "a config file name")), "a config file name"))

    def _read_text(self, layout: str) -> str:
        length = self._number(layout, "a text length")
        if length > self._bounds.text_bytes:
            raise MalformedMessage(
                f"a text of {length} bytes was announced; at most {self._bounds.text_bytes} are taken"
            )
        return _decode(bytes(self._read(length, "a text")), "a text")

    def _read_acquisition(self) -> ismrmrd.Acquisition:
        head = AcquisitionHeader.from_buffer(self._read(ctypes.sizeof(AcquisitionHeader), "an acquisition header"))
        if not head.number_of_samples or not head.active_channels:
            size = f"{head.active_channels} channels x {head.number_of_samples} samples"
            raise MalformedMessage(f"acquisition {head.scan_counter} announces {size}; expected at least 1 x 1")
        what = f"acquisition {head.scan_counter}"
        if head.active_channels > self._bounds.channels:
            most = self._bounds.channels
            raise MalformedMessage(f"{what} announces {head.active_channels} channels; at most {most} are taken")
        trajectory = self._read_array((head.number_of_samples, head.trajectory_dimensions), "<f4", what)
        data = self._read_array((head.active_channels, head.number_of_samples), "<c8", what)
        return ismrmrd.Acquisition(head, data=data, trajectory=trajectory)

    def _read_waveform(self) -> ismrmrd.Waveform:
        head = WaveformHeader.from_buffer(self._read(ctypes.sizeof(WaveformHeader), "a waveform header"))
        data = self._read_array((head.channels, head.number_of_samples), "<u4", f"waveform {head.scan_counter}")
        return ismrmrd.Waveform(head, data)

    def _read_image(self) -> ismrmrd.Image:
        head = ImageHeader.from_buffer(self._read(ctypes.sizeof(ImageHeader), "an image header"))
        if head.data_type not in IMAGE_TYPES:
            raise MalformedMessage(f"image {head.image_index} has data type {head.data_type}; expected 1 to 8")
        attributes = self._read_text("<Q")
        x, y, z = head.matrix_size
        data = self._read_array((head.channels, z, y, x), IMAGE_TYPES[head.data_type], f"image {head.image_index}")
        try:
            if attributes:
                parse_xml(attributes.encode(), self._bounds.text_bytes)  # the package's parsers expand entities
            image = ismrmrd.Image(head, attribute_string=attributes) if attributes else ismrmrd.Image(head)
        except Exception as error:  # the package lets errors of three XML parsers through
            raise MalformedMessage(f"image {head.image_index}: its attributes are not valid XML: {error}") from error
        image.data[...] = data
        return image

    def _read_array(self, shape: tuple[int, ...], dtype: npt.DTypeLike, what: str) -> npt.NDArray[Any]:
        kind = np.dtype(dtype)
        size, most = math.prod(shape) * kind.itemsize, self._bounds.data_bytes
        if size > most:
            raise MalformedMessage(f"{what} announces {size} bytes; at most {most} are taken")
        return np.ndarray(shape, kind, self._read(size, what))


class Connection:
    """Messages over one connected socket. One thread may receive while others send.

    Args:
        sock: connected; the caller closes it.
        patience: seconds that one read or write may wait for the peer; None waits for ever.
        bounds: of what a message may announce.
        sends_wait: whether writes wait for ever all the same.
    """

    def __init__(
        self,
        sock: socket.socket,
        patience: float | None = None,
        bounds: Bounds = BOUNDS,
        sends_wait: bool = False,
    ) -> None:
        sock.settimeout(patience)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = sock
        self._patience = patience
        self._sends_wait = sends_wait
        self._broken_off = False  # what followed would be read as a part of that message
        self._sending = threading.Lock()
        self._stream = cast(BufferedIOBase, sock.makefile("rb", buffering=READ_BUFFER))
        self._reader = MessageReader(self._stream, patience, bounds)

    def receive(self) -> Message:
        """The next message; raises what `MessageReader.read` raises."""
        return self._reader.read()

    def send(self, message: Message) -> None:
        """Sends one message.

        Raises:
            PeerVanished: the peer is gone.
            PeerIdle: the peer took nothing for longer than the patience.
        """
        if isinstance(message, ismrmrd.Acquisition):
            head = message.getHead()
            self._write(MessageId.ACQUISITION, bytes(head), _raw(message.traj, "<f4"), _raw(message.data, "<c8"))
        elif isinstance(message, ismrmrd.Waveform):
            self._write(MessageId.WAVEFORM, bytes(message.getHead()), _raw(message.data, "<u4"))
        elif isinstance(message, ismrmrd.Image):
            self._send_image(message)
        elif isinstance(message, ConfigFile):
            self._write(MessageId.CONFIG_FILE, _config_file_bytes(message.name))
        elif isinstance(message, ErrorText):
            self._write(MessageId.ERROR, *_text_bytes("<Q", message.text))
        elif isinstance(message, Close):
            self._write(MessageId.CLOSE)
        else:
            self._send_text(message)

    def peer_has_ended(self) -> bool:
        """Whether the peer has ended its side; it may still read. What it sent before that must have been received.

        Raises:
            PeerVanished: both sides have ended. Of a peer that closed its socket, this shows once something was sent.
        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        events = dict(poll.poll(0)).get(self._socket.fileno(), 0)
        if events & ~select.POLLIN:
            raise PeerVanished("the peer is gone")
        try:
            return bool(events) and not self._socket.recv(1, socket.MSG_PEEK)
        except OSError as error:
            raise PeerVanished(f"the peer is gone: {error.strerror or error}") from error

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        """Releases the reading side; the socket itself belongs to whoever made it."""
        self._stream.close()

    def hang_up(self) -> None:
        """Ends our side: a blocked `send` of another thread fails, and the peer reads the end of the stream."""
        with contextlib.suppress(OSError):  # the peer may have ended both sides already
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Ends both sides at once: a blocked `receive` of another thread fails too."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def drain(self, seconds: float) -> None:
        """Ends our side, then reads and drops what the peer still sends, until it ends too or the time is over.

        Closing a socket that holds unread data resets the connection, and the peer would lose our last words.
        """
        scrap = bytearray(READ_BUFFER)
        deadline = time.monotonic() + seconds
        try:
            self.hang_up()
            self._socket.settimeout(seconds)
            while self._stream.readinto(scrap) and time.monotonic() < deadline:
                pass
        except OSError:
            return

    def _send_some(self, parts: list[memoryview]) -> int:
        while True:
            try:
                return self._socket.sendmsg(parts)
            except TimeoutError:
                if not self._sends_wait:
                    raise

    def _send_text(self, message: ConfigText | HeaderText | Text) -> None:
        if isinstance(message, Text):
            self._write(MessageId.TEXT, *_text_bytes("<I", message.text))
        else:
            number = MessageId.CONFIG_TEXT if isinstance(message, ConfigText) else MessageId.HEADER
            self._write(number, *_text_bytes("<I", message.xml))

    def _send_image(self, image: ismrmrd.Image) -> None:
        head = image.getHead()
        attributes = image.attribute_string.encode()
        head.attribute_string_len = len(attributes)
        length = struct.pack("<Q", len(attributes))
        self._write(MessageId.IMAGE, bytes(head), length, attributes, _raw(image.data, IMAGE_TYPES[head.data_type]))

    def _write(self, number: MessageId, *parts: bytes | memoryview) -> None:
        waiting = [memoryview(struct.pack("<H", number)), *(memoryview(part) for part in parts if len(part))]
        try:
            with self._sending:
                if self._broken_off:
                    raise BrokenPipeError("a message before this one broke off")
                self._broken_off = True
                while waiting:
                    waiting = _unsent(waiting, self._send_some(waiting))
                self._broken_off = False
        except TimeoutError:
            raise PeerIdle(f"the peer took no data for {self._patience:g} s") from None
        except OSError as error:
            raise PeerVanished(f"the peer is gone: {error.strerror or error}") from error


def describe(message: Message) -> str:
    """Names the kind of a message in a sentence."""
    return {
        ConfigFile: "a config file (1)",
        ConfigText: "a config text (2)",
        HeaderText: "a header (3)",
        Close: "a close (4)",
        Text: "a text (5)",
        ErrorText: "an error (8)",
        ismrmrd.Acquisition: "an acquisition (1008)",
        ismrmrd.Waveform: "a waveform (1026)",
        ismrmrd.Image: "an image (1022)",
    }[type(message)]


def _raw(array: npt.NDArray[Any], dtype: npt.DTypeLike) -> memoryview:
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data


def _unsent(parts: list[memoryview], sent: int) -> list[memoryview]:
    while parts and sent >= len(parts[0]):
        sent -= len(parts[0])
        parts = parts[1:]
    return [parts[0][sent:], *parts[1:]] if sent else parts


def _decode(raw: bytes, what: str) -> str:
    try:
        return raw.partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"{what} is not UTF-8 text: {error}") from None


def _config_file_bytes(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) >= CONFIG_FILE_BYTES:
        raise ValueError(f"a config file name has at most {CONFIG_FILE_BYTES - 1} bytes, got {len(encoded)}")
    return encoded.ljust(CONFIG_FILE_BYTES, b"\0")


def _text_bytes(layout: str, text: str) -> tuple[bytes, bytes]:
    encoded = text.encode(errors="backslashreplace")  # an error text may quote anything that a peer sent
    return struct.pack(layout, len(encoded)), encoded
