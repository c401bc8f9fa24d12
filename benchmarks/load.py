"""Many scanners at one server: what it carries, what it adds to each acquisition, and whether anything is lost.

    python -m benchmarks.load [--clients 32] [--minutes 10] [--rate 25] [--scan mixed] [--pipeline pass] [--bare]
    python -m benchmarks.load --server HOST:PORT --pid PID --pipeline NAME
    python -m benchmarks.load --echo

Each client plays scans of a minute one after another, each as a session of its own: Cartesian lines of 8 coils x 256
samples at `--rate` a second, or, every fourth client, spirals of 8 coils x 3900 samples at two fifths of it. The
clients only send bytes that were made before, and cut what returns into messages.

The pipeline `pass` returns each acquisition as it came. The time there and back runs from before its first byte is sent
to after its last has returned; what a server adds to it is what exceeds that of `--echo`, which returns bytes. Other
pipelines are asked for by name; where images return, the time runs from the last acquisition of a slice to its image.

Our server is started here, records (unless `--bare`) and is monitored; recordings are counted and deleted as they are
finished. `--server` takes one that runs, of which `--pid` is the process. For python-ismrmrd-server (`python main.py
-m`), what returns acquisitions is a module beside its own, which is asked for by its name:

    def process(connection, config, header):
        for item in connection:
            if item is not None:
                connection.send_acquisition(item)
        connection.send_close()
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import multiprocessing
import re
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

import ismrmrd
import numpy as np
import psutil
from ismrmrd.acquisition import AcquisitionHeader, EncodingCounters
from ismrmrd.image import ImageHeader

from pipelines.simulate import SimulationSettings, simulate
from pipelines.streams.file import RawFile, open_raw
from pipelines.wire import CONFIG_FILE_BYTES, ERROR, IMAGE_TYPES, MessageId

PASS_XML = b"""<configuration><version>2</version><stream><external>
<execute name="pipelines.streams.gadgetron" target="run_chain" type="python"/>
<configuration><gadget name="NoisePrewhitening"/></configuration></external></stream></configuration>"""

SCANS = {
    "cartesian": SimulationSettings(trajectory="cartesian", matrix=(128, 128), coils=8, noise=0.0),
    "spiral": SimulationSettings(trajectory="spiral", matrix=(128, 128), coils=8, noise=0.0),
}
SPIRALS_EACH, SPIRAL_RATE = 4, 0.4
SCAN_SECONDS, PAUSE_SECONDS = 60.0, 2.0
EARLY_SECONDS = 2.0
SPREAD = 0.2  # of the seconds of a client's first scan, before it begins
SAMPLE_SECONDS = 5.0
STREAM_BUFFER = 1 << 20

ID = struct.Struct("<H")
COUNTER_AT = ID.size + AcquisitionHeader.scan_counter.offset
REPETITION_AT = ID.size + AcquisitionHeader.idx.offset + EncodingCounters.repetition.offset


@dataclass(frozen=True)
class Scan:
    """What a client sends again and again: messages as bytes, those of one slice."""

    kind: str
    header_xml: bytes
    lines: list[bytes]

    @classmethod
    def simulated(cls, kind: str, folder: Path) -> Scan:
        """One of `SCANS`."""
        path = folder / f"{kind}.h5"
        simulate(path, SCANS[kind])
        with RawFile(path) as raw:
            items = list(raw.items())
            for item in items:
                item.clearFlag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
            lines = [ID.pack(MessageId.ACQUISITION) + item.to_bytes() for item in items]
            return cls(kind, raw.header_xml.encode(), lines)


@dataclass
class Told:
    """What one session came to.

    Attributes:
        kind: of the scan.
        sent, returned, images: messages.
        bytes: sent as acquisitions.
        delays: seconds, of each acquisition that returned; of each image since the last acquisition of its slice.
        early: how many of them belong to the first seconds of the session, in which its process begins.
        first_image: seconds from connecting to the first image, less those that the scan of its slice lasts.
        late: seconds, of each acquisition, sent later than the scanner's clock says.
        failure: why it failed; empty if it did not.
    """

    kind: str
    sent: int = 0
    returned: int = 0
    images: int = 0
    bytes: int = 0
    delays: list[float] = field(default_factory=list)
    early: int = 0
    first_image: float = float("nan")
    late: list[float] = field(default_factory=list)
    failure: str = ""


class Client:
    """One scanner.

    Args:
        address: of the server.
        config: the message that asks for the pipeline.
        scan: what it sends.
        rate: acquisitions a second.
    """

    def __init__(self, address: tuple[str, int], config: bytes, scan: Scan, rate: float) -> None:
        self._address = address
        self._config = config
        self._scan = scan
        self._lines = [bytearray(line) for line in scan.lines]
        self._rate = rate

    async def play(self, first: float, until: float) -> list[Told]:
        """Scans until the time is over, the first of `first` seconds."""
        sessions: list[Told] = []
        await asyncio.sleep(first * SPREAD)
        wanted = first
        while (left := until - time.monotonic()) > 0:
            slices = round(min(wanted, left) * self._rate / len(self._lines))
            sessions.append(await self._session(max(slices, 1)))
            await asyncio.sleep(PAUSE_SECONDS)
            wanted = SCAN_SECONDS
        return sessions

    async def _session(self, slices: int) -> Told:
        told = Told(self._scan.kind)
        sent_at: dict[int, float] = {}
        began = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection(*self._address, limit=STREAM_BUFFER)
            writer.transport.set_write_buffer_limits(0)
            sending = asyncio.create_task(self._send(writer, slices, told, sent_at))
            try:
                await self._receive(reader, told, sent_at)
                if not told.failure:
                    await sending
            finally:
                sending.cancel()
                writer.close()
        except (OSError, EOFError) as error:
            told.failure = told.failure or str(error) or type(error).__name__
        told.first_image -= began + len(self._lines) / self._rate
        return told

    async def _send(self, writer: asyncio.StreamWriter, slices: int, told: Told, sent_at: dict[int, float]) -> None:
        xml = self._scan.header_xml
        writer.write(self._config + ID.pack(MessageId.HEADER) + struct.pack("<I", len(xml)) + xml)
        began = time.monotonic()
        for repetition in range(slices):
            for line in self._lines:
                due = began + told.sent / self._rate
                if (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                struct.pack_into("<I", line, COUNTER_AT, told.sent)
                struct.pack_into("<H", line, REPETITION_AT, repetition)
                sent_at[told.sent] = now = time.monotonic()
                told.late.append(now - due)
                writer.write(line)
                await writer.drain()
                told.sent += 1
                told.bytes += len(line)
        writer.write(ID.pack(MessageId.CLOSE))

    async def _receive(self, reader: asyncio.StreamReader, told: Told, sent_at: dict[int, float]) -> None:
        while (kind := await _number(reader, "<H")) != MessageId.CLOSE:
            if kind == MessageId.ACQUISITION:
                head = AcquisitionHeader.from_buffer_copy(await reader.readexactly(ctypes.sizeof(AcquisitionHeader)))
                values = head.number_of_samples * (2 * head.active_channels + head.trajectory_dimensions)
                await reader.readexactly(4 * values)
                told.delays.append(time.monotonic() - sent_at.pop(head.scan_counter))
                told.returned += 1
                told.early += head.scan_counter < EARLY_SECONDS * self._rate
            elif kind == MessageId.IMAGE:
                head = ImageHeader.from_buffer_copy(await reader.readexactly(ctypes.sizeof(ImageHeader)))
                values = head.channels * int(np.prod(head.matrix_size))
                await reader.readexactly(await _number(reader, "<Q") + values * IMAGE_TYPES[head.data_type].itemsize)
                now = time.monotonic()
                told.images += 1
                told.first_image = now if told.images == 1 else told.first_image
                told.delays.append(now - sent_at[told.images * len(self._lines) - 1])
            elif kind == MessageId.CONFIG_FILE:
                await reader.readexactly(CONFIG_FILE_BYTES)
            else:
                text = await reader.readexactly(await _number(reader, "<I"))
                if kind == MessageId.TEXT and text.startswith(ERROR.encode()):
                    told.failure = text.decode()


async def _number(reader: asyncio.StreamReader, layout: str) -> int:
    return struct.unpack(layout, await reader.readexactly(struct.calcsize(layout)))[0]


def play(clients: list[Client], until: float) -> list[Told]:
    """Their first scans are of different lengths, so that afterwards some always end while others go on."""

    async def all_of_them() -> list[list[Told]]:
        firsts = [SCAN_SECONDS * (number + 1) / len(clients) for number in range(len(clients))]
        return await asyncio.gather(*(one.play(first, until) for one, first in zip(clients, firsts, strict=True)))

    return [told for sessions in asyncio.run(all_of_them()) for told in sessions]


@dataclass
class Sample:
    """A server's processes at one moment.

    Attributes:
        seconds: since the clients began.
        mib: proportional memory (PSS), of all.
        processes: how many.
        front: CPU seconds of the server's own process since it began.
        reaped: of its children that have ended: of ours, what made recordings into .h5 files.
        others: of its other descendants: of ours, the workers.
    """

    seconds: float
    mib: float
    processes: int
    front: float
    reaped: float
    others: float


def sample(pid: int, began: float) -> Sample:
    """Of a process and its descendants."""
    root = psutil.Process(pid)
    mib, processes, others = _pss_mib(pid), 1, 0.0
    for child in root.children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it has just ended
            continue
        mib, processes = mib + _pss_mib(child.pid), processes + 1
        others += times.user + times.system + times.children_user + times.children_system
    own = root.cpu_times()
    reaped = own.children_user + own.children_system
    return Sample(time.monotonic() - began, mib, processes, own.user + own.system, reaped, others)


def _pss_mib(pid: int) -> float:
    with suppress(OSError):  # it has ended
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


@dataclass
class Recorded:
    """Counts recordings as they are finished, and deletes them: minutes at full rate are tens of gigabytes."""

    folder: Path
    files: int = 0
    acquisitions: int = 0
    most_waiting: int = 0

    def count(self) -> int:
        """Counts and deletes what is finished; gives how many are not."""
        for path in self.folder.glob("*.h5"):
            with open_raw(path) as raw:
                self.acquisitions += raw.acquisitions
            self.files += 1
            path.unlink()
        waiting = len(list(self.folder.glob("*.mrd")))
        self.most_waiting = max(self.most_waiting, waiting)
        return waiting


@dataclass(frozen=True)
class Server:
    """One that serves: its address, its process, where its metrics are shown, and what asks for a pipeline."""

    address: tuple[str, int]
    pid: int
    metrics: str = ""

    def config(self, pipeline: str) -> bytes:
        """The message that asks for a pipeline."""
        if pipeline == "pass":
            return ID.pack(MessageId.CONFIG_TEXT) + struct.pack("<I", len(PASS_XML)) + PASS_XML
        return ID.pack(MessageId.CONFIG_FILE) + pipeline.encode().ljust(CONFIG_FILE_BYTES, b"\0")

    def shown(self) -> dict[str, float]:
        """What the monitor shows, by name and labels."""
        if not self.metrics:
            return {}
        with urllib.request.urlopen(self.metrics) as page:
            lines = re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", page.read().decode(), re.MULTILINE)
        return {name: float(value) for name, value in lines}


@contextmanager
def our_server(sessions: int, recordings: Path | None) -> Iterator[Server]:
    """`spinstream serve`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        monitor = "{}:{}".format(*free.getsockname())
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--sessions", str(sessions)]
    command += ["--device", "cpu", "--monitor", monitor, *(["--record", str(recordings)] if recordings else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        host, _, port = server.stdout.readline().split()[-1].rpartition(":")
        try:
            yield Server((host, int(port)), server.pid, f"http://{monitor}/metrics")
        finally:
            server.terminate()


@contextmanager
def echo_server() -> Iterator[Server]:
    """Returns bytes as they come."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        process = multiprocessing.get_context("fork").Process(target=server.serve_forever)
        process.start()
        yield Server(server.server_address, process.pid or 0)
        process.terminate()
        process.join()


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := self.request.recv(1 << 18):
            self.request.sendall(data)


def run(
    clients: list[Client], server: Server, seconds: float, recorded: Recorded | None
) -> tuple[list[Told], list[Sample]]:
    """Plays the clients, in a process of their own, and watches the server meanwhile."""
    began = time.monotonic()
    samples = [sample(server.pid, began)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        playing = pool.submit(play, clients, began + seconds)
        while not playing.done():
            time.sleep(SAMPLE_SECONDS)
            samples.append(last := sample(server.pid, began))
            waiting = f" {recorded.count():3d} journals" if recorded else ""
            print(f"{last.seconds:5.0f} s {last.mib:7.0f} MiB {last.processes:3d} processes{waiting}", flush=True)
        return playing.result(), samples


def report(sessions: list[Told], samples: list[Sample], recorded: Recorded | None, shown: dict[str, float]) -> None:
    """Prints the figures."""
    first, last = samples[0], samples[-1]
    took, sent = last.seconds, sum(told.sent for told in sessions)
    failures = [told.failure for told in sessions if told.failure]
    print(f"{took:.0f} s, {len(sessions)} sessions, {len(failures)} failed", *failures[:5])
    print(
        f"acquisitions: {sent} sent, {sum(told.returned for told in sessions)} returned,",
        f"{recorded.acquisitions} in {recorded.files} recordings," if recorded else "not recorded,",
        f"{shown.get('spinstream_acquisitions_total', 0):.0f} counted by the monitor;",
        f"{sum(told.images for told in sessions)} images",
    )
    print(f"sent {sent / took:.0f}/s, {sum(told.bytes for told in sessions) / took / 1e6:.1f} MB/s")
    print("behind the scanner's clock:", percentiles([s for told in sessions for s in told.late]))
    for kind in sorted({told.kind for told in sessions}):
        ours = [told for told in sessions if told.kind == kind]
        print(f"there and back, {kind}:", percentiles([s for told in ours for s in told.delays[told.early :]]))
    print("there and back, all:", percentiles([s for told in sessions for s in told.delays[told.early :]]))
    early = [s for told in sessions for s in told.delays[: told.early]]
    print(f"there and back, first {EARLY_SECONDS:g} s of sessions:", percentiles(early))
    print("first image:", percentiles([told.first_image for told in sessions if told.images]))
    thirds = [part.mean() for part in np.array_split([s.mib for s in samples], 3)]
    print("memory (PSS), mean of each third:", ", ".join(f"{third:.0f}" for third in thirds), "MiB")
    for what, of in (("front", "front"), ("its children that ended", "reaped"), ("other processes", "others")):
        spent = getattr(last, of) - getattr(first, of)
        print(f"CPU of {what}: {spent:.1f} s, {1e6 * spent / max(sent, 1):.0f} us an acquisition")
    if recorded:
        print(f"at most {recorded.most_waiting} journals being written or waiting to be finished")
    outcomes = {name: value for name, value in shown.items() if "sessions_total" in name and value}
    print(*(f"{name} {value:.0f}" for name, value in outcomes.items()))


def percentiles(seconds: list[float]) -> str:
    """In milliseconds."""
    if not seconds:
        return "none"
    p50, p99, p999 = 1e3 * np.percentile(seconds, [50, 99, 99.9])
    return f"p50 {p50:.2f}, p99 {p99:.2f}, p99.9 {p999:.2f}, max {1e3 * max(seconds):.1f} ms"


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rate", type=float, default=25, help="acquisitions of a Cartesian client in a second")
    parser.add_argument("--scan", choices=["mixed", *SCANS], default="mixed")
    parser.add_argument("--pipeline", default="pass")
    parser.add_argument("--server", help="HOST:PORT of one that runs")
    parser.add_argument("--pid", type=int, help="of that server")
    parser.add_argument("--echo", action="store_true", help="against a server that returns bytes")
    parser.add_argument("--bare", action="store_true", help="record nothing")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scans = [Scan.simulated(kind, Path(folder)) for kind in SCANS]
        recordings = None if arguments.bare or arguments.echo or arguments.server else Path(folder, "recordings")
        with server_of(arguments, recordings) as server:
            clients = [client(arguments, number, server, scans) for number in range(arguments.clients)]
            recorded = Recorded(recordings) if recordings else None
            sessions, samples = run(clients, server, 60 * arguments.minutes, recorded)
            while recorded and recorded.count():
                time.sleep(1)
            report(sessions, samples, recorded, server.shown())


def server_of(arguments: argparse.Namespace, recordings: Path | None) -> AbstractContextManager[Server]:
    """The server that was asked for."""
    if arguments.server:
        host, _, port = arguments.server.rpartition(":")
        return nullcontext(Server((host, int(port)), arguments.pid))
    return echo_server() if arguments.echo else our_server(arguments.clients, recordings)


def client(arguments: argparse.Namespace, number: int, server: Server, scans: list[Scan]) -> Client:
    """One of the clients."""
    cartesian, spiral = scans
    every_fourth = number % SPIRALS_EACH == SPIRALS_EACH - 1
    plays_spirals = arguments.scan == "spiral" or (arguments.scan == "mixed" and every_fourth)
    scan, rate = (spiral, arguments.rate * SPIRAL_RATE) if plays_spirals else (cartesian, arguments.rate)
    return Client(server.address, server.config(arguments.pipeline), scan, rate)


if __name__ == "__main__":
    main()
