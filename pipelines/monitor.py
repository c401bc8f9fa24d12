"""What a server shows to those who watch it, over HTTP: `/metrics` for Prometheus, `/healthz`, `/readyz`.

Numbers only: no name, label or text has anything of a patient or of a client in it.
"""

from __future__ import annotations

import importlib.metadata
import logging
import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from pipelines.errors import SpinstreamError
from pipelines.streams.progress import Outcome, Progress

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

log = logging.getLogger("spinstream")

REQUEST_SECONDS = 10.0
POLL_SECONDS = 0.1
UNAVAILABLE = "503 Service Unavailable"


@dataclass(frozen=True, kw_only=True)
class SessionStatus:
    """One session.

    Attributes:
        number: of the session.
        progress: what its worker told last.
        recorded_bytes: of what its client sent.
        recording_failed: whether its recording had to stop.
        backlog_bytes: of what its client sent, that its worker has not taken yet.
    """

    number: int
    progress: Progress = field(default_factory=Progress)
    recorded_bytes: int = 0
    recording_failed: bool = False
    backlog_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Totals:
    """What sessions did together. A server keeps those of its ended sessions.

    Attributes:
        sessions: by how they ended.
        acquisitions, waveforms, frames, images: counts.
        gadgets: seconds inside each gadget and items that it took, by the gadget's name.
        recorded_bytes: of what clients sent.
        recording_failures: sessions whose recording had to stop.
    """

    sessions: Mapping[Outcome, int] = field(default_factory=dict)
    acquisitions: int = 0
    waveforms: int = 0
    frames: int = 0
    images: int = 0
    gadgets: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    recorded_bytes: int = 0
    recording_failures: int = 0

    def including(self, session: SessionStatus) -> Totals:
        """With what one more session did."""
        progress = session.progress
        return replace(
            self,
            acquisitions=self.acquisitions + progress.acquisitions,
            waveforms=self.waveforms + progress.waveforms,
            frames=self.frames + progress.frames,
            images=self.images + progress.images,
            gadgets=_sum(self.gadgets, progress.gadgets),
            recorded_bytes=self.recorded_bytes + session.recorded_bytes,
            recording_failures=self.recording_failures + session.recording_failed,
        )

    def ended(self, outcome: Outcome) -> Totals:
        """With one more session that ended so."""
        return replace(self, sessions={**self.sessions, outcome: self.sessions.get(outcome, 0) + 1})


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """A server at one moment.

    Attributes:
        alive: clients are accepted, or no longer because the server drains.
        ready: a new client would be served.
        reason: why not.
        draining: no new clients are taken, and the server ends with its sessions.
        places: sessions at a time.
        sessions: that run.
        totals: of the sessions that have ended.
        waiting_for_turn: sessions that do not compute, since others have their turn.
        recordings_free_bytes: room on the disk of the recordings; None where nothing is recorded.
    """

    alive: bool
    ready: bool
    reason: str
    draining: bool
    places: int
    sessions: Sequence[SessionStatus] = ()
    totals: Totals = field(default_factory=Totals)
    waiting_for_turn: int = 0
    recordings_free_bytes: int | None = None


class Monitor:
    """Answers HTTP requests in a thread of its own, from `with` to its end.

    Args:
        host: address to listen on.
        port: 0 picks a free one; see `address`.
        status: asked at each request, from several threads at once.

    Attributes:
        address: host and port.

    Raises:
        SpinstreamError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, status: Callable[[], ServerStatus]) -> None:
        registry = CollectorRegistry()
        registry.register(_StatusCollector(status))
        ProcessCollector(registry=registry)
        try:
            self._server = _HttpServer(host, port)
        except OSError as error:
            raise SpinstreamError(f"cannot monitor at {host}:{port}: {error.strerror or error}") from error
        self._server.set_app(_Pages(status, make_wsgi_app(registry)))
        serve = self._server.serve_forever
        self._thread = threading.Thread(target=serve, args=(POLL_SECONDS,), name="monitor", daemon=True)
        self.address: tuple[str, int] = self._server.server_address[:2]  # type: ignore[assignment]

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _HttpServer(socketserver.ThreadingMixIn, WSGIServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _RequestHandler)

    def server_bind(self) -> None:
        # That of HTTPServer asks for the host's name, for which networks without name servers let it wait.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()


class _RequestHandler(WSGIRequestHandler):
    timeout = REQUEST_SECONDS

    def log_message(self, format: str, *args: object) -> None:
        log.debug(f"monitor: {format}", *args)


class _Pages:
    """The three pages, as a WSGI application."""

    def __init__(
        self,
        status: Callable[[], ServerStatus],
        metrics: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]],
    ) -> None:
        self._status = status
        self._metrics = metrics

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        try:
            if environ["PATH_INFO"] == "/metrics":
                return self._metrics(environ, start)
            answer, text = self._answer(environ["PATH_INFO"])
        except Exception:
            log.exception("the monitor failed at %s", environ["PATH_INFO"])
            answer, text = "500 Internal Server Error", "a defect of spinstream; see its log"
        start(answer, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _answer(self, path: str) -> tuple[str, str]:
        if path == "/healthz":
            return ("200 OK", "alive") if self._status().alive else (UNAVAILABLE, "clients are not accepted any more")
        if path == "/readyz":
            status = self._status()
            return ("200 OK", "ready") if status.ready else (UNAVAILABLE, status.reason)
        return "404 Not Found", "expected /metrics, /healthz or /readyz"


class _StatusCollector(Collector):
    """A server's status as Prometheus metrics."""

    def __init__(self, status: Callable[[], ServerStatus]) -> None:
        self._status = status

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not ask for the status."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        status = self._status()
        yield InfoMetricFamily("spinstream", "Which spinstream.", {"version": importlib.metadata.version("spinstream")})
        yield from _gauges(status)
        totals = status.totals
        for session in status.sessions:
            totals = totals.including(session)
        yield from _counters(totals)
        yield _latencies(totals)
        yield _at_work(status.sessions)


def _gauges(status: ServerStatus) -> Iterator[Metric]:
    told = [session.progress for session in status.sessions]
    values = {
        "ready": ("Whether a new client would be served.", status.ready),
        "draining": ("Whether the server ends with its sessions.", status.draining),
        "session_places": ("Sessions at a time.", status.places),
        "sessions_active": ("Sessions that run.", len(status.sessions)),
        "sessions_waiting_for_turn": ("Sessions that wait for their turn at the device.", status.waiting_for_turn),
        "backlog_bytes": (
            "Of what clients sent, waiting in the recordings for their sessions.",
            sum(session.backlog_bytes for session in status.sessions),
        ),
        "buffer_bytes": (
            "Sample data that wait for gadgets in the processes of sessions.",
            sum(p.buffered_bytes for p in told),
        ),
        "memory_bytes": ("Held by the processes of running sessions.", sum(p.memory_bytes for p in told)),
    }
    if status.recordings_free_bytes is not None:
        values["recordings_free_bytes"] = ("Room on the disk of the recordings.", status.recordings_free_bytes)
    for name, (meaning, value) in values.items():
        yield GaugeMetricFamily(f"spinstream_{name}", meaning, value)


def _counters(totals: Totals) -> Iterator[Metric]:
    values = {
        "acquisitions": ("Acquisitions taken by gadgets.", totals.acquisitions),
        "waveforms": ("Waveforms taken by gadgets.", totals.waveforms),
        "frames": ("Frames made of them.", totals.frames),
        "images": ("Images let out.", totals.images),
        "recorded_bytes": ("Of what clients sent.", totals.recorded_bytes),
        "recording_failures": ("Sessions whose recording had to stop.", totals.recording_failures),
    }
    for name, (meaning, value) in values.items():
        yield CounterMetricFamily(f"spinstream_{name}", meaning, value)
    sessions = CounterMetricFamily("spinstream_sessions", "Ended sessions by how they ended.", labels=["outcome"])
    errors = CounterMetricFamily("spinstream_errors", "What went wrong.", labels=["kind"])
    for outcome in Outcome:  # those that never happened too: a first error is a step from zero
        count = totals.sessions.get(outcome, 0)
        sessions.add_metric([outcome.value], count)
        if outcome not in (Outcome.DONE, Outcome.SILENT):
            errors.add_metric([outcome.value], count)
    errors.add_metric(["recording"], totals.recording_failures)
    yield sessions
    yield errors


def _latencies(totals: Totals) -> Metric:
    latencies = SummaryMetricFamily("spinstream_gadget_latency_seconds", "Inside a gadget, by item.", labels=["gadget"])
    for gadget, (seconds, items) in totals.gadgets.items():
        latencies.add_metric([gadget], count_value=items, sum_value=seconds)
    return latencies


def _at_work(sessions: Sequence[SessionStatus]) -> Metric:
    """Shows what hangs."""
    longest: dict[str, float] = {}
    for at in (session.progress.at for session in sessions):
        if at is not None:
            longest[at[0]] = max(at[2], longest.get(at[0], 0.0))
    metric = GaugeMetricFamily("spinstream_gadget_at_work_seconds", "On its present item, longest.", labels=["gadget"])
    for gadget, seconds in longest.items():
        metric.add_metric([gadget], seconds)
    return metric


def _sum(some: Mapping[str, tuple[float, int]], more: Mapping[str, tuple[float, int]]) -> dict[str, tuple[float, int]]:
    result = dict(some)
    for gadget, (seconds, items) in more.items():
        before = result.get(gadget, (0.0, 0))
        result[gadget] = (before[0] + seconds, before[1] + items)
    return result
