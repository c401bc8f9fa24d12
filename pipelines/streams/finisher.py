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
    """Begins with what an earlier server left behind. Journals that are still waiting at `close` are left to the next.

    Args:
        recordings: the folder; pruned after each.
    """

    def __init__(self, recordings: Recordings) -> None:
        self._recordings = recordings
        self._line = ThreadPoolExecutor(1, "recordings")
        for journal in recordings.left_behind():
            self.finish(journal)

    def finish(self, journal: Path) -> None:
        """Takes a journal that is closed; what goes wrong is logged, and the journal stays."""
        with contextlib.suppress(RuntimeError):  # closed meanwhile
            self._line.submit(self._finish, journal)

    def close(self) -> None:
        """Takes no more, and does not wait."""
        self._line.shutdown(wait=False, cancel_futures=True)

    def _finish(self, journal: Path) -> None:
        # In a process of its own: converting takes the interpreter for seconds, in which no byte would pass.
        command = [sys.executable, "-m", "pipelines.recordings", str(journal.parent), journal.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            log.error("%s", done.stderr.strip() or f"{journal}: stays a journal: status {done.returncode}")
        try:
            self._recordings.prune()
        except OSError as error:
            log.error("%s: cannot be pruned: %s", self._recordings.folder, error.strerror or error)
