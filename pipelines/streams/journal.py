"""What a client sent, kept as it came: a journal is an MRD stream in a file, from the configuration to the close."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from io import BufferedIOBase, BufferedReader, FileIO
from pathlib import Path
from types import TracebackType

import ismrmrd
from ismrmrd.acquisition import AcquisitionHeader
from ismrmrd.waveform import WaveformHeader

from pipelines.bounds import BOUNDS
from pipelines.errors import FileError, MalformedMessage, PeerVanished, WireError
from pipelines.wire import (
    READ_BUFFER,
    Close,
    ConfigFile,
    ConfigText,
    ErrorText,
    HeaderText,
    Message,
    MessageId,
    MessageReader,
    Text,
    describe,
)

SYNC_SECONDS = 0.5
FULL = (errno.ENOSPC, errno.EDQUOT)
JUNK_BYTES = 1 << 16
SMALL_BUFFER = 512
"""Holds any header of a message: larger reads are wasted where the samples are skipped."""

WIDE = replace(BOUNDS, text_bytes=1 << 30, data_bytes=16 << 30, channels=0xFFFF)
"""What a site took need not be within the bounds of whoever reads it later."""
LONGEST_PART = 64 << 20
"""A message of which more than this is there, but not all, is rather one that lies about its length."""

DATA = (ismrmrd.Acquisition, ismrmrd.Waveform, ismrmrd.Image)


class Journal:
    """A journal while it is written. It is locked (flock) until it is closed, or its process dies.

    Once `write` has returned, what it was given survives the death of the process; a second later, loss of power.

    Args:
        path: of the new file, for the eyes of its owner only; so is its folder, if that is made here.

    Attributes:
        size: bytes written so far.
        stopped: whether the disk refused; further writes do nothing.

    Raises:
        FileExistsError: the file exists.
        FileError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.stopped = False
        self._changed = False
        self._failure: OSError | None = None
        self._open = threading.Lock()  # held while the descriptor must not be closed
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = _create(path)
            sync_folder(path.parent)
        except OSError as error:
            if isinstance(error, FileExistsError) and path.exists():
                raise
            raise FileError(f"{path}: cannot be recorded to: {_reason(error)}") from error
        _SYNCER.add(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Appends bytes.

        Raises:
            FileError: the disk is full or broken, now or since the last write. Raised once; the last message may then
                be there in part.
        """
        if self.stopped:
            return
        rest = memoryview(data).cast("B")
        try:
            if self._failure is not None:
                raise self._failure
            while rest:
                written = os.write(self._descriptor, rest)
                self.size += written
                self._changed = True
                rest = rest[written:]
        except OSError as error:
            raise self._stop(error) from error

    def read(self, offset: int, count: int) -> bytes:
        """Bytes from those written, fewer at their end.

        Raises:
            FileError: the disk is broken.
        """
        try:
            return os.pread(self._descriptor, count, offset)
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read back: {_reason(error)}") from error

    def close(self) -> None:
        """Brings all to disk and lets go of the file.

        Raises:
            FileError: the disk refuses, and `write` has not said so yet.
        """
        _SYNCER.discard(self)
        self.sync()
        with self._open:
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
        if self._failure is not None and not self.stopped:
            raise self._stop(self._failure)

    def sync(self) -> None:
        """Brings what changed to disk; a failure is raised at the next write."""
        with self._open:
            if not self._changed or self._descriptor < 0:
                return
            self._changed = False
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                self._failure = error

    def _stop(self, error: OSError) -> FileError:
        self.stopped = True
        return FileError(f"{self.path}: nothing more is recorded after {self.size} bytes: {_reason(error)}")


class _Syncer:
    """Brings the journals of this process to disk, in one thread."""

    def __init__(self) -> None:
        self._journals: set[Journal] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, journal: Journal) -> None:
        with self._lock:
            self._journals.add(journal)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="journals", daemon=True)
                self._thread.start()

    def discard(self, journal: Journal) -> None:
        with self._lock:
            self._journals.discard(journal)

    def _run(self) -> None:
        while True:
            time.sleep(SYNC_SECONDS)
            with self._lock:
                journals = list(self._journals)
            for journal in journals:
                journal.sync()


_SYNCER = _Syncer()


class NothingRecorded(FileError):
    """A client came and went before it had sent an MRD header."""


class JournalFile:
    """The raw data of a journal, read like a `RawFile`, as far as they are there.

    Args:
        path: of the journal, which may be cut off anywhere, or still be written to.

    Attributes:
        header_xml: the MRD header.
        config: which pipeline the client asked for.
        parameters: the text that came right after the header: FIRE's clients send JSON parameters there.
        texts: those that came elsewhere.
        acquisitions: how many there are.
        waveforms: likewise.
        images: likewise.
        dropped: what is missing at the end, in words; None where the client's close is there.
        readable: False if bytes came that are no message, or no likely part of one; what follows them is dropped.

    Raises:
        NothingRecorded: it is readable, but has not come to the MRD header; or it is little, and no message, as of a
            scan of ports.
        FileError: it cannot be read, or something else is where the MRD header should be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header_xml = ""
        self.config: ConfigFile | ConfigText | None = None
        self.parameters: str | None = None
        self.texts: list[str] = []
        self.acquisitions = self.waveforms = self.images = 0
        self.dropped: str | None = "it ends without the client's close"
        self.readable = True
        self._messages = 0
        self._previous: type[object] | None = None
        try:
            with BufferedReader(FileIO(path), SMALL_BUFFER) as stream:
                self._scan(stream, os.fstat(stream.fileno()).st_size)
            self._file = BufferedReader(FileIO(path), READ_BUFFER)
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {error.strerror or error}") from error
        if not self.header_xml:
            self._file.close()
            junk = not self._messages and path.stat().st_size <= JUNK_BYTES
            kind = NothingRecorded if self.readable or junk else FileError
            raise kind(f"{path}: there is no MRD header in this recording; {self.dropped or 'only a close'}")

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def items(self) -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform | ismrmrd.Image]:
        """Acquisitions, waveforms and images in the order in which they came; one such iteration at a time.

        Raises:
            FileError: an item that contradicts itself, or a disk that fails.
        """
        self._file.seek(0)
        reader = MessageReader(self._file, bounds=WIDE)
        for _ in range(self._messages):
            at = self._file.tell()
            try:
                message = reader.read()
            except WireError as error:
                raise FileError(f"{self.path}: the message at byte {at} cannot be read: {error}") from error
            if isinstance(message, DATA):
                yield message

    def _scan(self, stream: BufferedIOBase, size: int) -> None:
        """Passes over all messages, samples unread."""
        reader, whole = MessageReader(stream, bounds=WIDE), 0
        try:
            while whole < size and self._previous is not Close:
                self._previous = self._pass(stream, reader, size)
                self._messages += 1
                whole = stream.tell()
        except PeerVanished as error:
            if isinstance(error.__cause__, OSError):
                raise error.__cause__ from None
            self.readable = size - whole <= LONGEST_PART
            self.dropped = f"its last {size - whole} bytes are part of a message: {error}"
        except MalformedMessage as error:
            self.readable = False
            self.dropped = f"its last {size - whole} bytes cannot be read: {error}"
        if self._previous is Close:
            self.readable = whole == size
            self.dropped = None if self.readable else f"its last {size - whole} bytes came after the client's close"

    def _pass(self, stream: BufferedIOBase, reader: MessageReader, size: int) -> type[object]:
        """Passes over one message and gives its type.

        Raises:
            PeerVanished: not all of it is there.
            MalformedMessage: it is none, or must not stand here.
        """
        at = stream.tell()
        number = int.from_bytes(stream.read(2), "little")
        if number == MessageId.ACQUISITION:
            _pass_acquisition(stream, size)
            kind: type[object] = ismrmrd.Acquisition
            self.acquisitions += 1
        elif number == MessageId.WAVEFORM:
            _pass_waveform(stream, size)
            kind = ismrmrd.Waveform
            self.waveforms += 1
        else:
            stream.seek(at)
            message = reader.read()
            self._take(message)
            kind = type(message)
        if not self.header_xml and kind in DATA:
            raise MalformedMessage("data came before the MRD header")
        return kind

    def _take(self, message: Message) -> None:
        if isinstance(message, (ConfigFile, ConfigText)) and self._previous is None:
            self.config = message
        elif isinstance(message, HeaderText) and not self.header_xml:
            self.header_xml = message.xml
        elif isinstance(message, Text) and self._previous is HeaderText:
            self.parameters = message.text
        elif isinstance(message, (Text, ErrorText)):
            self.texts.append(message.text)
        elif isinstance(message, ismrmrd.Image):
            self.images += 1
        elif not isinstance(message, Close):
            raise MalformedMessage(f"{describe(message)} must not come here")


def sync_folder(folder: Path) -> None:
    """Brings to disk which files there are in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path) -> int:
    """A new file, locked. Whoever finds it before it is locked may lock it first, and remove it as an empty one."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _reason(error: OSError) -> str:
    what = os.strerror(error.errno) if error.errno else str(error)
    return f"disk full ({what})" if error.errno in FULL else what


def _pass_acquisition(stream: BufferedIOBase, size: int) -> None:
    head = AcquisitionHeader.from_buffer(_head(stream, ctypes.sizeof(AcquisitionHeader), "an acquisition"))
    if not head.number_of_samples or not head.active_channels:
        raise MalformedMessage(f"acquisition {head.scan_counter} has no samples")
    values = head.number_of_samples * (2 * head.active_channels + head.trajectory_dimensions)
    _pass_values(stream, values, size, f"acquisition {head.scan_counter}")


def _pass_waveform(stream: BufferedIOBase, size: int) -> None:
    head = WaveformHeader.from_buffer(_head(stream, ctypes.sizeof(WaveformHeader), "a waveform"))
    _pass_values(stream, head.channels * head.number_of_samples, size, f"waveform {head.scan_counter}")


def _head(stream: BufferedIOBase, length: int, what: str) -> bytearray:
    head = bytearray(stream.read(length))
    if len(head) < length:
        raise PeerVanished(f"{len(head)} of {length} bytes of the header of {what}")
    return head


def _pass_values(stream: BufferedIOBase, count: int, size: int, what: str) -> None:
    """Passes over values of 4 bytes."""
    left = size - stream.tell()
    if 4 * count > left:
        raise PeerVanished(f"{left} of {4 * count} bytes of {what}")
    stream.seek(4 * count, os.SEEK_CUR)
