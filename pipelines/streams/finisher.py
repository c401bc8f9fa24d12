"""Makes the journals of ended sessions into .h5 files, one after the other, beside what the server does."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.recordings import Recordings

log = logging.getLogger("spinstream")


class Finisher:
    """Begins with what an earlier server left behind, and tries one that failed again whenever another succeeds.

    Args:
        recordings: the folder; pruned after each.
    """

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._line = ThreadPoolExecutor(1, "recordings")
        self._process: subprocess.Popen[str] | None = None
        self._closed = False
        self._failed: set[Path] = set()
        for journal in recordings.left_behind():
            self.finish(journal)

    def finish(self, journal: Path) -> None:
        """Takes a journal that is closed; what goes wrong is logged, and the journal stays."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._line.submit(self._finish, journal)

    def close(self) -> None:
        """Takes no more, and stops at once: the journals stay, and are left to the next server."""
        self._closed = True
        self._line.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.terminate()

    def _finish(self, journal: Path) -> None:
        try:
            if journal.exists() and not self._closed and self._converted(journal):
                self._recordings.prune()
                if self._failed:
                    self.finish(self._failed.pop())
        except Exception:
            log.exception("%s: stays a journal", journal)

    def _converted(self, journal: Path) -> bool:
        # In a process of its own: converting takes the interpreter for seconds, in which no byte would pass.
        command = [sys.executable, "-m", "pipelines.recordings", str(journal.parent), journal.name]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as self._process:
            _, told = self._process.communicate()
        if self._process.returncode and not self._closed:
            log.error("%s", told.strip() or f"{journal}: stays a journal: status {self._process.returncode}")
            self._failed.add(journal)
        return not self._process.returncode
