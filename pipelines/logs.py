"""The log: as text for people or as JSON lines for machines, and of which session each line is.

Whatever a session's code logs, gadgets and libraries included, carries its number: `in_session` sets it for the thread
that calls it, and for those that run in a copy of its context, or for a process that serves one session at a time.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Literal, TypeAlias

Form: TypeAlias = Literal["text", "json"]

log = logging.getLogger("spinstream")

_session: ContextVar[int | None] = ContextVar("session", default=None)
_session_of_process: int | None = None

# What a peer sends may be quoted: it shall neither begin a line of its own nor steer the terminal.
_HARMLESS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {ord("\t"): "\t", ord("\n"): "\n    "}


def configure(level: int = logging.INFO, form: Form = "text") -> None:
    """Sends the log of this process to standard error: ours from `level` on, warnings and worse of others."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if form == "json" else _TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(level)


@contextlib.contextmanager
def in_session(number: int, *, whole_process: bool = False) -> Iterator[None]:
    """What is logged meanwhile is of this session.

    Args:
        number: of the session.
        whole_process: in every thread, not only in this context; for a process with one session at a time.
    """
    token = _session.set(number)
    if whole_process:
        _set_session_of_process(number)
    try:
        yield
    finally:
        _session.reset(token)
        if whole_process:
            _set_session_of_process(None)


def _set_session_of_process(number: int | None) -> None:
    global _session_of_process
    _session_of_process = number


def current_session() -> int | None:
    """The session that the calling code works for, if any."""
    number = _session.get()
    return _session_of_process if number is None else number


class _TextFormatter(logging.Formatter):
    """`time level session N: message`; further lines are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(session)s%(message)s")

    def format(self, record: logging.LogRecord) -> str:
        number = current_session()
        record.session = "" if number is None else f"session {number}: "
        return super().format(record).translate(_HARMLESS)


class _JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, session, message, exception."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "session": current_session(),
            "message": record.getMessage(),
            "exception": self.formatException(record.exc_info) if record.exc_info else None,
        }
        return json.dumps({key: value for key, value in line.items() if value is not None})
