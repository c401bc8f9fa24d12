"""A folder of recordings: journals while clients send, ISMRMRD .h5 files once they have gone.

`python -m pipelines.recordings FOLDER JOURNAL` makes the one out of the other, at the lowest priority.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from itertools import count
from pathlib import Path

from pipelines.errors import FileError
from pipelines.streams.file_apart import Description, Reader
from pipelines.streams.file_writer import RawFileWriter
from pipelines.streams.journal import Journal, JournalFile, NothingRecorded, sync_folder
from pipelines.wire import ConfigFile, ConfigText

log = logging.getLogger("spinstream")

JOURNAL = ".mrd"
FINISHED = ".h5"
PART = ".part"
TIME = "%Y%m%d-%H%M%S"
TIME_LENGTH = len("20261122-101503")
NAME = re.compile(r"\d{8}-\d{6}-s\d{4,}(-\d+)?\.(mrd|h5)")
LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class Entry:
    """One recording.

    Attributes:
        path: of its file.
        when: it began, UTC.
        bytes: of its file.
        state: "recording" while a server writes it, "journal" until it is finished, then "finished".
        acquisitions: so far; None if the file cannot be read.
        pipeline: the name that the client asked for.
        problem: why the file cannot be read, or what is missing at its end.
    """

    path: Path
    when: datetime
    bytes: int
    state: str
    acquisitions: int | None = None
    pipeline: str = ""
    problem: str | None = None


class Recordings:
    """The recordings of a folder; other files in it are left alone, and other servers may use it at the same time.

    Args:
        folder: made with the first recording.
        keep_days: age from which `prune` removes finished recordings; None keeps them for ever.
        keep_bytes: what finished recordings may take up together; None for as much as there is.
    """

    def __init__(self, folder: Path, keep_days: float | None = None, keep_bytes: int | None = None) -> None:
        self.folder = folder
        self._keep_days = keep_days
        self._keep_bytes = keep_bytes

    def begin(self, session: int) -> Journal:
        """A new journal, named by the time (UTC) and the session.

        Raises:
            FileError: it cannot be made.
        """
        stem = f"{datetime.now(timezone.utc):{TIME}}-s{session:04}"
        names = (f"{stem}-{number}{JOURNAL}" if number > 1 else f"{stem}{JOURNAL}" for number in count(1))
        while True:
            path = self.folder / next(names)
            with contextlib.suppress(FileExistsError):  # of another server, or of one before a restart
                journal = Journal(path)
                if not path.with_suffix(FINISHED).exists():
                    return journal
                path.unlink()
                journal.close()

    def finish(self, journal: Path) -> Path | None:
        """Makes a closed journal into an .h5 file beside it, which other programs read as well.

        The journal is deleted once all of it is safely on disk there, but for a last message that came in part. Whoever
        still writes it is waited for.

        Returns:
            The path of the .h5 file; None if the client left before the MRD header, and nothing is kept.

        Raises:
            FileError: that is not possible; the journal is as it was.
        """
        finished = journal.with_suffix(FINISHED)
        try:
            with _locked(journal) as there:
                if there:
                    try:
                        _convert(journal, finished)
                    except NothingRecorded as nothing:
                        log.info("%s; removed", nothing)
                    journal.unlink()
                    sync_folder(journal.parent)
        except FileError as error:
            raise FileError(f"{error}; it stays a journal") from error
        except OSError as error:
            raise FileError(f"{journal}: cannot be finished, and stays a journal: {error}") from error
        return finished if finished.exists() else None

    def left_behind(self) -> list[Path]:
        """The journals that nobody writes any more, oldest first."""
        return [journal for journal in self._paths(JOURNAL) if not _is_written(journal)]

    def recover(self) -> list[Path]:
        """Finishes the journals that nobody writes any more.

        Returns:
            Those that stay journals; the reasons are logged.
        """
        left = []
        for journal in self.left_behind():
            try:
                self.finish(journal)
            except FileError as error:
                log.error("%s", error)
                left.append(journal)
        return left

    def prune(self, coming: int = 0) -> list[Path]:
        """Removes finished recordings beyond the age, and the oldest beyond the size, and logs which.

        The newest is never too large. Journals are never removed.

        Args:
            coming: bytes of a recording that is about to be finished, for which there shall be room too.
        """
        oldest = datetime.now(timezone.utc) - timedelta(days=self._keep_days or 0)
        room = float("inf") if self._keep_bytes is None else self._keep_bytes - coming
        removed = []
        for number, path in enumerate(reversed(self._paths(FINISHED))):
            with contextlib.suppress(FileNotFoundError):  # another server was quicker
                room -= path.stat().st_size
                too_old = self._keep_days is not None and _when(path) < oldest
                if too_old or (room < 0 and number > 0):
                    path.unlink()
                    log.info("recording %s removed: %s", path.name, "its age" if too_old else "the size of all")
                    removed.append(path)
        return removed

    def entries(self) -> list[Entry]:
        """All recordings, oldest first."""
        entries = []
        with Reader() as reader:
            for path in self._paths(JOURNAL, FINISHED):
                with contextlib.suppress(FileNotFoundError):  # finished or removed meanwhile
                    entries.append(_entry(path, reader))
        return entries

    def _paths(self, *suffixes: str) -> list[Path]:
        """Our files, oldest first."""
        if not self.folder.exists():
            return []
        files = (path for path in self.folder.iterdir() if NAME.fullmatch(path.name) and path.suffix in suffixes)
        return sorted((path for path in files if path.is_file() and not path.is_symlink()), key=lambda path: path.stem)


@contextlib.contextmanager
def _locked(journal: Path) -> Iterator[bool]:
    """Waits for whoever writes or finishes a journal; whether it is still there then."""
    try:
        descriptor = os.open(journal, os.O_RDWR)
    except FileNotFoundError:
        if not journal.with_suffix(FINISHED).exists():
            raise
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield os.fstat(descriptor).st_nlink > 0
    finally:
        os.close(descriptor)


def _is_written(journal: Path) -> bool:
    try:
        with journal.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # gone, or not ours to read: whoever opens it next is told
        return False
    return False


def _convert(journal: Path, finished: Path) -> None:
    """Writes all that a journal holds to a file that is there at once, whole and on disk.

    Raises:
        FileError: not all of it can be.
        OSError: the disk refuses.
    """
    part = finished.with_suffix(PART)
    try:
        with JournalFile(journal) as source:
            if not source.readable:
                raise FileError(f"{journal}: {source.dropped}")
            if source.images:
                raise FileError(
                    f"{journal}: holds {source.images} images, which would not be replayed from an .h5 file"
                )
            with RawFileWriter(part) as target:
                _copy(source, target)
        part.rename(finished)
        sync_folder(finished.parent)
    finally:
        part.unlink(missing_ok=True)
    log.info("recording %s: %d acquisitions", finished.name, source.acquisitions)


def _copy(source: JournalFile, target: RawFileWriter) -> None:
    target.write_text("xml", source.header_xml)
    if isinstance(source.config, ConfigFile):
        target.write_text("config_file", source.config.name)
    elif isinstance(source.config, ConfigText):
        target.write_text("config", source.config.xml)
    if source.parameters is not None:
        target.write_text("parameters", source.parameters)
    if source.texts:
        target.write_text("texts", *source.texts)
    if source.dropped is not None:
        target.note("dropped", source.dropped)
    for item in source.items():
        target.write(item)


def _when(path: Path) -> datetime:
    """When a recording began, from its name."""
    return datetime.strptime(path.name[:TIME_LENGTH], TIME).replace(tzinfo=timezone.utc)


def _entry(path: Path, reader: Reader) -> Entry:
    state = "finished" if path.suffix == FINISHED else "recording" if _is_written(path) else "journal"
    entry = Entry(path=path, when=_when(path), bytes=path.stat().st_size, state=state)
    try:
        if path.suffix == FINISHED:
            return _described(entry, reader.describe(path))
        with JournalFile(path) as journal:
            return _described(entry, journal)
    except FileError as error:
        return replace(entry, problem=str(error).removeprefix(f"{path}: "))


def _described(entry: Entry, raw: Description | JournalFile) -> Entry:
    config = raw.config.name if isinstance(raw.config, ConfigFile) else "as text" if raw.config else ""
    return replace(entry, acquisitions=raw.acquisitions, pipeline=config, problem=raw.dropped)


def main(folder: str, journal: str) -> int:
    """Finishes one journal; the exit status."""
    os.nice(LOWEST_PRIORITY)
    try:
        Recordings(Path(folder)).finish(Path(folder) / Path(journal).name)
    except FileError as error:
        log.error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
