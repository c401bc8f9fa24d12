"""Machines that compute frames, as a Dask cluster: a scheduler and workers that anybody may start and stop.

Dask sees to where a frame is computed, and to computing it again when its worker dies; here its futures become results,
and what its workers say becomes notes. Members of a Dask cluster execute what the others send.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gadgets.frame import Frame
from pipelines.errors import ClusterError, PeerVanished, SpinstreamError
from pipelines.executors.executor import Part, Timings
from pipelines.executors.parcel import Parcel
from pipelines.executors.part_solver import solver_of_this_machine

if TYPE_CHECKING:
    from distributed import Client, Future

TOPIC = "spinstream"
FRAMES_PER_THREAD = 2
"""In flight, of one part: one is computed, one is there already when it is done."""
MOST_DEATHS = 3
LOOK_S = 1.0
CONNECT_S = 10.0
PATIENCE_S = 60.0
"""Without any worker."""
TRANSFER_S = 60.0
"""For a result that is done."""
GONE = OSError, TimeoutError, CancelledError
"""What Dask raises when the scheduler does not answer."""
LARGEST_FRAME = "16 GiB"
"""Without a warning of Dask that it goes by way of the scheduler; so it survives the death of a worker."""


class Cluster:
    """The executor of one session.

    Args:
        address: of the scheduler, such as tcp://host:8786. Where it starts with tls://, keys and certificates are those
            of Dask's configuration.
        device: where results are wanted.

    Raises:
        ClusterError: `distributed` is not installed, or there is no scheduler at the address.
    """

    def __init__(self, address: str, device: torch.device) -> None:
        self.nudge: Callable[[], object] = lambda: None
        self._address = address
        self._device = device
        self._client = _connect(address)
        self._changed = threading.Event()
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._parts: set[str] = set()
        self._frames: dict[str, str] = {}
        self._workers: defaultdict[str, list[str]] = defaultdict(list)
        self._threads, self._looked, self._last_seen = 0, -math.inf, time.monotonic()
        self._client.subscribe_topic(TOPIC, self._hear)

    def submit(self, part: Part, frame: Frame, noise_known: bool) -> _Submitted:
        """Begins with a frame, or queues it."""
        import dask

        parcel, tensors = Parcel.of(frame)
        key = f"spinstream-{part.key}-{len(self._frames)}"
        self._parts.add(part.key)
        self._frames[key] = frame.label

        with dask.config.set({"distributed.admin.large-graph-warning-threshold": LARGEST_FRAME}):
            future = self._client.submit(solve, part, parcel, noise_known, key=key, priority=part.priority)
        future.add_done_callback(self._wake)
        return _Submitted(future, f"{part.name} on {frame.label}", self._workers[key], partial(self._unpacked, tensors))

    def _unpacked(self, tensors: Sequence[Tensor], parcel: Parcel) -> Sequence[object]:
        items: Sequence[object]
        items, _ = parcel.open(self._device, tensors)
        return items

    def slots(self) -> int:
        """How many frames of one part to have in flight.

        Raises:
            ClusterError: there has been no worker for too long, or the scheduler is gone.
        """
        now = time.monotonic()
        if now - self._looked >= LOOK_S:
            try:
                self._threads = sum(self._client.nthreads().values())
            except GONE as error:
                raise ClusterError(f"the scheduler of the cluster {self._address} is gone: {error}") from error
            self._looked = time.monotonic()
        if self._threads:
            self._last_seen = now
        elif now - self._last_seen > PATIENCE_S:
            raise ClusterError(
                f"the cluster {self._address} has had no worker for {PATIENCE_S:g} s; start one on each machine "
                f"that shall compute: dask worker {self._address} --nthreads 1 --memory-limit 0"
            )
        return max(FRAMES_PER_THREAD * self._threads, 1)

    def notes(self) -> Iterator[str]:
        """What gadgets told, and where frames are computed again."""
        while True:
            try:
                yield self._notes.get_nowait()
            except Empty:
                return

    def wait(self, seconds: float) -> None:
        """Until something was done or told, or for some time."""
        self._changed.wait(seconds)
        self._changed.clear()

    def close(self) -> None:
        """Has the workers forget the session, and leaves the cluster, which cancels what is in flight."""
        from distributed import fire_and_forget

        with suppress(*GONE):
            for worker in self._client.nthreads():
                for part in self._parts:
                    there = {"workers": [worker], "allow_other_workers": True, "pure": False}
                    fire_and_forget(self._client.submit(forget, part, **there))
        self._client.close()

    def _hear(self, event: tuple[float, dict[str, str]]) -> None:
        """In the thread of Dask's client."""
        _, message = event
        key = message["frame"]
        if key not in self._frames:
            return
        if "note" in message:
            self._notes.put(message["note"])
        else:
            workers = self._workers[key]
            if workers:
                self._notes.put(
                    f"{self._frames[key]}: the worker {workers[-1]} is gone; {message['worker']} begins again "
                    f"(attempt {len(workers) + 1})"
                )
            workers.append(message["worker"])
        self._wake()

    def _wake(self, *_: object) -> None:
        self._changed.set()
        self.nudge()


class _Submitted:
    """A frame on the cluster."""

    def __init__(
        self, future: Future, what: str, workers: Sequence[str], unpack: Callable[[Parcel], Sequence[object]]
    ) -> None:
        self._future = future
        self._what = what
        self._workers = workers
        self._unpack = unpack

    def done(self) -> bool:
        return len(self._workers) > MOST_DEATHS or bool(self._future.done())

    def result(self) -> tuple[Sequence[object], Timings]:
        from distributed import KilledWorker

        if len(self._workers) > MOST_DEATHS:
            raise ClusterError(
                f"{self._what}: {MOST_DEATHS} workers of the cluster died over it, {', '.join(self._workers[:-1])}; "
                "their logs may say why, and it is not tried again"
            )
        try:
            parcel, timings = self._future.result(TRANSFER_S)
        except SpinstreamError:
            raise
        except KilledWorker as error:
            raise ClusterError(
                f"{self._what}: workers of the cluster died again and again; their logs may say why: {error}"
            ) from error
        except (Exception, CancelledError) as error:
            raise ClusterError(
                f"{self._what} was not computed on the cluster: {type(error).__name__}: {error}"
            ) from error
        return self._unpack(parcel), timings

    def cancel(self) -> None:
        with suppress(*GONE):
            self._future.cancel()


def solve(part: Part, parcel: Parcel, noise_known: bool) -> tuple[Parcel, Timings]:
    """Runs in a worker: one frame through a part of a chain."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def tell(text: str) -> None:
        worker.log_event(TOPIC, {"frame": key, "note": text})

    def require_client() -> None:
        task = worker.state.tasks.get(key)
        if task is None or task.state in ("cancelled", "resumed"):
            raise PeerVanished("nobody waits for this frame any more")

    worker.log_event(TOPIC, {"frame": key, "worker": worker.address})
    return solver_of_this_machine().solve(part, parcel, noise_known, tell, require_client)


def forget(key: str) -> None:
    """Runs in a worker: a session is over."""
    solver_of_this_machine().forget(key)


def _connect(address: str) -> Client:
    try:
        from distributed import Client, Security
    except ImportError as error:
        raise ClusterError("a cluster needs the package distributed: pip install 'spinstream[cluster]'") from error
    security = Security()
    if address.startswith("tls://") and security.get_connection_args("client").get("ssl_context") is None:
        raise ClusterError(
            f"{address} needs keys and certificates in Dask's configuration: set DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY"
        )
    options: dict[str, Any] = {"timeout": CONNECT_S, "set_as_default": False, "security": security}
    try:
        return Client(address, **options)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"there is no cluster at {address}: {error}; start its scheduler with: dask scheduler"
        ) from error
