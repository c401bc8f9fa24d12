"""Makes the journals of ended sessions into .h5 files, one after the other, beside what the server does."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipelines.recordings import Recordings

log = logging.getLogger("spinstream")

TIDY_SECONDS = 3600.0


class Finisher:
    """Begins with what an earlier server left behind; tries one that failed again with each success, and each hour.

    Args:
        recordings: the folder; pruned now, before and after each journal, and each hour.
    """

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._line = ThreadPoolExecutor(1, "recordings")
        self._process: subprocess.Popen[str] | None = None
        self._closed = threading.Event()
        self._failed: set[Path] = set()
        self._prune()
        for journal in recordings.left_behind():
            self.finish(journal)
        threading.Thread(target=self._tidy_again, name="tidy", daemon=True).start()

    def finish(self, journal: Path) -> None:
        """Takes a journal that is closed; what goes wrong is logged, and the journal stays."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._line.submit(self._finish, journal)

    def close(self) -> None:
        """Takes no more, and stops at once: the journals stay, and are left to the next server."""
        self._closed.set()
        self._line.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.terminate()

    def _tidy_again(self) -> None:
        while not self._closed.wait(TIDY_SECONDS):
            with contextlib.suppress(RuntimeError):
                self._line.submit(self._tidy)

    def _tidy(self) -> None:
        """Recordings age though nothing is recorded, and a full disk may have room again."""
        self._prune()
        failed, self._failed = self._failed, set()
        for journal in sorted(failed):
            self.finish(journal)

    def _prune(self, coming: int = 0) -> None:
        try:
            self._recordings.prune(coming)
        except OSError as error:
            log.error("old recordings cannot be removed: %s", error)

    def _finish(self, journal: Path) -> None:
        try:
            if not journal.exists() or self._closed.is_set():
                return
            self._prune(coming=journal.stat().st_size)
            if self._converted(journal):
                self._prune()
                if self._failed:
                    self.finish(self._failed.pop())
        except Exception:
            log.exception("%s: stays a journal", journal)

    def _converted(self, journal: Path) -> bool:
        # In a process of its own: converting takes the interpreter for seconds, in which no byte would pass.
        command = [sys.executable, "-m", "pipelines.recordings", str(journal.parent), journal.name]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as self._process:
            _, told = self._process.communicate()
        if self._process.returncode and not self._closed.is_set():
            log.error("%s", told.strip() or f"{journal}: stays a journal: status {self._process.returncode}")
            self._failed.add(journal)
        return not self._process.returncode
