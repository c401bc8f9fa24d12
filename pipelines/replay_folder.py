"""Replays all raw data of a folder, each file for itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import FileError, SpinstreamError

log = logging.getLogger("spinstream")

FINISHED, JOURNAL = ".h5", ".mrd"


@dataclass(frozen=True)
class Replayed:
    """What became of one file: images in seconds, or an error."""

    file: str
    images: int
    seconds: float
    error: str | None

    def __str__(self) -> str:
        outcome = f"failed: {self.error}" if self.error is not None else f"{self.images} images"
        return f"{self.file}: {outcome}, {self.seconds:.1f} s"


def raw_files(folder: Path) -> dict[str, Path]:
    """The ISMRMRD files and journals of a folder by what to name their images after, in alphabetical order.

    A journal that stands beside its finished .h5 is left out.

    Raises:
        FileError: there are none.
    """
    files = sorted(path for path in folder.iterdir() if path.suffix in (FINISHED, JOURNAL))
    found = {path.stem: path for path in files if path.suffix == FINISHED or path.with_suffix(FINISHED) not in files}
    if not found:
        raise FileError(f"{folder}: holds no raw data: no file ends in {FINISHED} or {JOURNAL}")
    return found


def replay_files(
    files: Mapping[str, Path], replay: Callable[[str, Path], int], at_once: int, done: Callable[[Replayed], object]
) -> Sequence[Replayed]:
    """Replays files; one that fails does not stop the others.

    Args:
        files: by name.
        replay: replays one and says how many images came; may be called from several threads.
        at_once: how many at a time.
        done: hears of each file once it is through.

    Returns:
        What became of each, in the order of the files.
    """

    def one(name: str, path: Path) -> Replayed:
        began = time.monotonic()
        images, error = 0, None
        try:
            images = replay(name, path)
        except SpinstreamError as failure:
            error = str(failure)
        except Exception as failure:  # the other files must not suffer from a defect that this one brings to light
            log.exception("a defect of spinstream, met with %s", path)
            error = f"a defect of spinstream, please report it: {type(failure).__name__}: {failure}"
        result = Replayed(path.name, images, time.monotonic() - began, error)
        done(result)
        return result

    with ThreadPoolExecutor(at_once) as threads:
        return list(threads.map(one, files.keys(), files.values()))


def table(results: Sequence[Replayed]) -> Iterator[str]:
    """The lines of a table of files, images, seconds and what went wrong."""
    width = max(len("file"), *(len(result.file) for result in results))
    yield f"{'file':<{width}}  images  seconds"
    for result in results:
        failure = "" if result.error is None else f"  failed: {result.error.splitlines()[0]}"
        yield f"{result.file:<{width}}  {result.images:6d}  {result.seconds:7.1f}{failure}"
