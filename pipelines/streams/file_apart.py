"""ISMRMRD .h5 files read in a process of its own: on some damaged or hostile ones libhdf5 comes to no end, or crashes.

`python -m pipelines.streams.file_apart DESCRIPTOR` is that process; it is asked, and answers, in MRD messages.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import ismrmrd

from pipelines.errors import FileError, PeerIdle, PeerVanished, WireError
from pipelines.streams.file import RawFile, is_journal
from pipelines.streams.journal import WIDE, JournalFile
from pipelines.wire import ConfigFile, ConfigText, Connection, ErrorText, Message, Text

SILENCE_SECONDS = 60.0
"""A disk that takes longer over one block is as good as broken."""

HEADER, ITEMS, END = "header", "items", ""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What `RawFile` tells of a file before its items are read; see there."""

    header_xml: str
    acquisitions: int
    config_file: str | None
    config_text: str | None
    parameters: str | None
    dropped: str | None

    @classmethod
    def of(cls, raw: RawFile) -> Description:
        """Of an open file."""
        return cls(
            header_xml=raw.header_xml,
            acquisitions=raw.acquisitions,
            config_file=raw.config.name if isinstance(raw.config, ConfigFile) else None,
            config_text=raw.config.xml if isinstance(raw.config, ConfigText) else None,
            parameters=raw.parameters,
            dropped=raw.dropped,
        )

    @property
    def config(self) -> ConfigFile | ConfigText | None:
        """Which pipeline the client asked for."""
        if self.config_file is not None:
            return ConfigFile(self.config_file)
        return None if self.config_text is None else ConfigText(self.config_text)


class Reader:
    """The process, from its first file to the end of the `with` block; one that hangs or dies has a successor."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def describe(self, path: Path, group: str = "dataset") -> Description:
        """What a file tells before its items are read.

        Raises:
            FileError: what `RawFile` raises, or the process hangs or dies.
        """
        self._ask(path, group, HEADER)
        message = self._answer(path)
        assert isinstance(message, Text)
        return Description(**json.loads(message.text))

    def items(self, path: Path, group: str = "dataset") -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform]:
        """The items of a file; the reader is good for nothing else until all have been taken.

        Raises:
            FileError: what `RawFile.items` raises, or the process hangs or dies.
        """
        self._ask(path, group, ITEMS)
        while not isinstance(message := self._answer(path), Text):
            yield message

    def close(self) -> None:
        """Ends the process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._connection.__exit__()
            self._socket.close()
            self._process = None

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "pipelines.streams.file_apart", str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._connection = Connection(self._socket, SILENCE_SECONDS, WIDE)

    def _ask(self, path: Path, group: str, what: str) -> None:
        if self._process is None:
            self._start()
        with suppress(WireError):  # the answer will fail too, and say why
            self._connection.send(Text(json.dumps([str(path), group, what])))

    def _answer(self, path: Path) -> Message:
        try:
            message = self._connection.receive()
        except PeerIdle:
            self.close()
            raise FileError(
                f"{path}: nothing more could be read of it in {SILENCE_SECONDS:g} s, so it is given up: the file is "
                "damaged such that libhdf5 comes to no end, or its disk does not answer"
            ) from None
        except WireError as error:
            self.close()
            raise FileError(f"{path}: cannot be read to its end: libhdf5 crashed, or {error}") from error
        if isinstance(message, ErrorText):
            raise FileError(message.text)
        return message


class RawFileApart:
    """A `RawFile` that another process reads.

    Args:
        path: an ISMRMRD file.
        group: the measurement's group in it.

    Attributes:
        header_xml, acquisitions, config, parameters, dropped: see `RawFile`.

    Raises:
        FileError: what `RawFile` raises, or the process hangs or dies.
    """

    def __init__(self, path: Path, group: str = "dataset") -> None:
        self.path = path
        self._group = group
        self._reader = Reader()
        try:
            told = self._reader.describe(path, group)
        except FileError:
            self._reader.close()
            raise
        self.header_xml, self.acquisitions, self.config = told.header_xml, told.acquisitions, told.config
        self.parameters, self.dropped = told.parameters, told.dropped

    def __enter__(self) -> RawFileApart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.close()

    def items(self) -> Iterator[ismrmrd.Acquisition | ismrmrd.Waveform]:
        """Acquisitions in the order of the file, with waveforms placed among them by time stamp; to be taken once.

        Raises:
            FileError: what `RawFile.items` raises, or the process hangs or dies.
        """
        return self._reader.items(self.path, self._group)


def open_raw_apart(path: Path, group: str = "dataset") -> RawFileApart | JournalFile:
    """The raw data of an ISMRMRD .h5 file, read by another process, or of a journal; see `open_raw`.

    Raises:
        FileError: it is neither, or holds no raw data, or cannot be read to its end.
    """
    return JournalFile(path) if is_journal(path, group) else RawFileApart(path, group)


def main(descriptor: int) -> None:
    """Answers until the other side has gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches both; here it shall leave no traceback
    with (
        socket.socket(fileno=descriptor) as sock,
        Connection(sock, bounds=WIDE) as asking,
        suppress(PeerVanished),
    ):
        while isinstance(request := asking.receive(), Text):
            path, group, what = json.loads(request.text)
            try:
                _answer(asking, Path(path), group, what)
            except FileError as error:
                asking.send(ErrorText(str(error)))


def _answer(asking: Connection, path: Path, group: str, what: str) -> None:
    with RawFile(path, group) as raw:
        if what == HEADER:
            asking.send(Text(json.dumps(asdict(Description.of(raw)))))
            return
        for item in raw.items():
            asking.send(item)
        asking.send(Text(END))


if __name__ == "__main__":
    main(int(sys.argv[1]))
