"""What becomes of a session in which something breaks, of the others, and of its data.

    python -m benchmarks.faults.campaign [gadgets] [gadgetron] [cuts] [others]

Each gadget raises, hangs and dies (SIGSEGV), under our server and as a child of a scripted Gadgetron; a session is cut
in and between all its messages; a worker is killed while it computes; the disk is full; the client is gone; the server
is asked to stop. Each time: has the person at the client heard the right reason, did another session go on, and does
the recording, replayed, give the images of an undisturbed run (or, of a session that was cut, all that it had sent)?
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import psutil

from benchmarks.faults.faulty import FAULTS, install
from pipelines.errors import WireError
from pipelines.recordings import Recordings
from pipelines.registry import installed_gadgets
from pipelines.replay import Replay, replay_here
from pipelines.session import Site
from pipelines.simulate import SimulationSettings, simulate
from pipelines.streams.file import open_raw
from pipelines.wire import Close, ConfigText, Connection, ErrorText, HeaderText, Message, Text

SCAN = SimulationSettings(trajectory="cartesian", matrix=(32, 32), coils=4, slices=2)
CHAIN = (
    "NoisePrewhitening",
    "Trajectory",
    "RemoveOversampling",
    "FrameAssembly",
    "CoilCompression",
    "CoilMaps",
    "Preview",
    "FieldMap",
    "CgSense",
    "ImageExport",
)
WORK_LIMIT = 2.0
PATIENCE = 60.0
REASONS = {"Raises": "made to fail", "Hangs": f"for more than {WORK_LIMIT:g} s", "Dies": "SIGSEGV"}


@dataclass
class Bench:
    """What all cases share: a scan, its images undisturbed, and a folder on whose path the faulty gadgets are."""

    folder: Path
    raw: Path
    header: str
    items: list[ismrmrd.Acquisition]
    images: list[np.ndarray]

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that know the faulty gadgets."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder / "faulty"), str(Path.cwd())])}

    def replayed(self, recording: Path) -> list[np.ndarray]:
        """The images of a recording, by the sound pipeline."""
        return images_of(recording, self.folder)


@dataclass
class Verdict:
    """Of one case."""

    case: str
    heard: str
    right: bool
    others: bool
    replays: bool

    @property
    def good(self) -> bool:
        """All that was asked for."""
        return self.right and self.others and self.replays


def configuration(*gadgets: str) -> str:
    """A pipeline definition."""
    inner = "".join(f'<gadget name="{name}"/>' for name in gadgets)
    return (
        '<configuration><version>2</version><stream><external><execute name="pipelines.streams.gadgetron" '
        f'target="run_chain" type="python"/><configuration>{inner}</configuration></external></stream></configuration>'
    )


def chain_with(gadget: str, fault: str) -> list[str]:
    """The chain in which one gadget is the faulty one; other solvers take the place of CgSense."""
    at = CHAIN.index(gadget) if gadget in CHAIN else CHAIN.index("CgSense")
    return [*CHAIN[:at], f"{fault}{gadget}", *CHAIN[at + 1 :]]


def images_of(raw: Path, folder: Path) -> list[np.ndarray]:
    """What the sound pipeline makes of a file."""
    definition = folder / "sound.xml"
    definition.write_text(configuration(*CHAIN))
    images: list[np.ndarray] = []
    with open_raw(raw) as file:
        site = Site(device="cpu", state_folder=folder / "state")
        job = Replay(raw=raw, pipeline=str(definition))
        replay_here(job, file, site, lambda item: images.append(np.array(item.data)), lambda _: None, lambda i, _: i)
    return images


def prepared(folder: Path) -> Bench:
    """Simulates the scan and installs the faulty gadgets."""
    install(folder / "faulty")
    raw = folder / "raw.h5"
    simulate(raw, SCAN)
    with open_raw(raw) as file:
        return Bench(folder, raw, file.header_xml, list(file.items()), images_of(raw, folder))


@contextlib.contextmanager
def serving(bench: Bench, recordings: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], tuple[str, int]]]:
    """A server of its own process."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0", "--device", "cpu"]
    command += ["--record", str(recordings), "--work-limit", str(WORK_LIMIT), *options]
    with (bench.folder / "server.log").open("a") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=bench.environment)
    try:
        assert process.stdout is not None
        host, _, port = process.stdout.readline().split()[-1].rpartition(":")
        yield process, (host, int(port))
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


class Bystander:
    """Another session, open all the time: it sends a readout now and then and must have its image in the end."""

    def __init__(self, bench: Bench, address: tuple[str, int]) -> None:
        self._bench = bench
        self._sock = socket.create_connection(address)
        self._connection = Connection(self._sock, PATIENCE)
        self._sent = 0
        for message in (ConfigText(configuration(*CHAIN)), HeaderText(bench.header)):
            self._connection.send(message)
        time.sleep(1.0)  # so that its worker is older than those of the cases

    def goes_on(self) -> bool:
        """Sends one more readout; whether the server takes it."""
        try:
            self._connection.send(self._bench.items[self._sent % len(self._bench.items)])
        except WireError:
            return False
        self._sent += 1
        return True

    def ends_well(self) -> bool:
        """Sends what is left; whether images come."""
        try:
            for item in self._bench.items[self._sent :]:
                self._connection.send(item)
            self._connection.send(Close())
            return any(isinstance(message, ismrmrd.Image) for message in received(self._connection))
        except WireError:
            return False
        finally:
            self._connection.__exit__()
            self._sock.close()


def received(connection: Connection) -> list[Message]:
    """All up to the close."""
    got: list[Message] = []
    while not isinstance(message := connection.receive(), Close):
        got.append(message)
        if isinstance(message, ErrorText):
            connection.hang_up()
    return got


def errors(got: Sequence[Message]) -> str:
    """The reasons that were heard."""
    texts = [message.text for message in got if isinstance(message, (Text, ErrorText))]
    return "; ".join(text.removeprefix("error: ").strip() for text in texts if not text.startswith("note: "))


def converse(address: tuple[str, int], messages: Sequence[Message]) -> str:
    """The reasons that a polite client hears."""
    with socket.create_connection(address) as sock, Connection(sock, PATIENCE) as connection:
        for message in messages:
            connection.send(message)
        return errors(received(connection))


def newest(recordings: Path, known: set[Path], seconds: float = 30.0) -> Path | None:
    """The recording that was not known before, once it is finished."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        fresh = [entry.path for entry in Recordings(recordings).entries() if entry.path not in known]
        done = [path for path in fresh if path.suffix == ".h5"]
        if done:
            known.update(done)
            return done[-1]
        time.sleep(0.1)
    return None


def same(images: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> bool:
    """Whether two runs gave the same images."""
    return len(images) == len(others) > 0 and all(map(np.array_equal, images, others))


def gadgets(bench: Bench) -> Iterator[Verdict]:
    """Each gadget with each fault, under our server."""
    recordings, known = bench.folder / "embedded", set[Path]()
    with serving(bench, recordings) as (_, address):
        bystander = Bystander(bench, address)
        for gadget in installed_gadgets():
            for fault in FAULTS:
                config = ConfigText(configuration(*chain_with(gadget, fault)))
                heard = converse(address, [config, HeaderText(bench.header), *bench.items, Close()])
                recording = newest(recordings, known)
                yield Verdict(
                    f"{gadget} {fault.lower()}",
                    heard,
                    REASONS[fault] in heard and gadget in heard,
                    bystander.goes_on(),
                    recording is not None and same(bench.replayed(recording), bench.images),
                )
        yield Verdict("the other session", "", True, bystander.ends_well(), True)


def gadgetron(bench: Bench) -> Iterator[Verdict]:
    """Each gadget with each fault, as a child of a scripted Gadgetron."""
    recordings, known = bench.folder / "child", set[Path]()
    environment = {
        **bench.environment,
        "SPINSTREAM_RECORD": str(recordings),
        "SPINSTREAM_WORK_LIMIT": str(WORK_LIMIT),
    }
    for gadget in installed_gadgets():
        for fault in FAULTS:
            heard, status = run_child(bench, chain_with(gadget, fault), environment)
            recording = newest(recordings, known)
            yield Verdict(
                f"{gadget} {fault.lower()}, under Gadgetron",
                heard,
                REASONS[fault] in heard and gadget in heard,
                status == 0,
                recording is not None and same(bench.replayed(recording), bench.images),
            )


def run_child(bench: Bench, chain: Sequence[str], environment: dict[str, str]) -> tuple[str, int]:
    """What Gadgetron hears of its child, and the child's exit status."""
    inner = "".join(f'<gadget name="{name}" />' for name in chain)
    with socket.create_server(("127.0.0.1", 0)) as listener, (bench.folder / "child.log").open("a") as log:
        command = [sys.executable, "-m", "gadgetron", str(listener.getsockname()[1])]
        command += ["pipelines.streams.gadgetron", "run_chain"]
        child = subprocess.Popen(command, env=environment, stderr=log)
        listener.settimeout(PATIENCE)
        sock, _ = listener.accept()
        with sock, Connection(sock, PATIENCE) as connection:
            for number, text in ((2, f"<configuration>{inner}</configuration>"), (3, bench.header)):
                sock.sendall(packed_text(number, text))
            for item in (*bench.items, Close()):
                connection.send(item)
            heard = errors(received(connection))
        return heard, child.wait(PATIENCE)


def cuts(bench: Bench) -> Iterator[Verdict]:
    """A session that ends in and between all its messages."""
    recordings, known = bench.folder / "cuts", set[Path]()
    messages = [packed_text(2, configuration(*CHAIN)), packed_text(3, bench.header)]
    messages += [packed(item) for item in bench.items[:6]]
    with serving(bench, recordings) as (_, address):
        bystander = Bystander(bench, address)
        for number, message in enumerate(messages):
            before = b"".join(messages[:number])
            for length in sorted({0 if number else 1, 1, 2, 5, len(message) // 2, len(message) - 1}):
                heard = cut(address, before + message[:length])
                recording = newest(recordings, known) if number > 1 else None  # before the header, none is kept
                complete = max(number - 2, 0)
                yield Verdict(
                    f"cut after {length} of {len(message)} bytes of message {number}",
                    heard,
                    "the connection ended after" in heard,
                    bystander.goes_on(),
                    acquisitions(recording) == complete,
                )
        yield Verdict("the other session", "", True, bystander.ends_well(), True)


def packed_text(number: int, text: str) -> bytes:
    """A configuration or a header as bytes."""
    return struct.pack("<HI", number, len(text.encode())) + text.encode()


def packed(item: ismrmrd.Acquisition) -> bytes:
    """An acquisition as bytes."""
    return struct.pack("<H", 1008) + bytes(item.to_bytes())


def cut(address: tuple[str, int], data: bytes) -> str:
    """What a client hears that ends its side after some bytes."""
    with socket.create_connection(address) as sock, Connection(sock, PATIENCE) as connection:
        sock.sendall(data)
        connection.hang_up()
        return errors(received(connection))


def acquisitions(recording: Path | None) -> int:
    """How many a recording holds."""
    if recording is None:
        return 0
    with h5py.File(recording) as file:
        return len(file["dataset/data"]) if "data" in file["dataset"] else 0


def others(bench: Bench) -> Iterator[Verdict]:
    """Killed workers, full disks, clients that are gone, and a server that stops."""
    scan = [ConfigText(configuration(*CHAIN)), HeaderText(bench.header), *bench.items, Close()]
    recordings, known = bench.folder / "others", set[Path]()
    with serving(bench, recordings) as (server, address):
        bystander = Bystander(bench, address)
        with socket.create_connection(address) as sock, Connection(sock, PATIENCE) as connection:
            for message in (ConfigText(configuration(*chain_with("CgSense", "Hangs"))), *scan[1:-1]):
                connection.send(message)
            kill_worker(server.pid)
            connection.send(Close())
            heard = errors(received(connection))
        recording = newest(recordings, known)
        yield verdict(bench, "worker killed while a gadget works", heard, "SIGKILL", bystander, recording)
        with socket.create_connection(address) as sock, Connection(sock, PATIENCE) as connection:
            for message in scan[:-1]:
                connection.send(message)
            time.sleep(0.5)  # a reset drops what has not been read
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield verdict(bench, "client gone", "", "", bystander, newest(recordings, known))
        server.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        goes_on = bystander.ends_well()
        recording = newest(recordings, known)
        replays = recording is not None and same(bench.replayed(recording), bench.images)
        yield Verdict("SIGTERM mid-stream", "", True, goes_on, replays)
        yield Verdict("server ends after it", "", server.wait(PATIENCE) == 0, True, True)
    with (
        serving(bench, recordings) as (server, address),
        socket.create_connection(address) as sock,
        Connection(sock, PATIENCE) as connection,
    ):
        for message in scan[:-1]:
            connection.send(message)
        time.sleep(1.0)
        server.kill()
        server.wait()
    with serving(bench, recordings) as (_, address):
        yield verdict(bench, "server killed mid-stream, and started again", "", "", None, newest(recordings, known))
    yield full_disk(bench)


def full_disk(bench: Bench) -> Verdict:
    """The recording stops, the images do not."""
    scan = [ConfigText(configuration(*CHAIN)), HeaderText(bench.header), *bench.items, Close()]
    with serving(bench, bench.folder / "full") as (server, address):
        bystander = Bystander(bench, address)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
        with socket.create_connection(address) as sock, Connection(sock, PATIENCE) as connection:
            for message in scan:
                connection.send(message)
            got = received(connection)
        images = [message.data for message in got if isinstance(message, ismrmrd.Image)]
        heard = errors(got)
        right = "nothing more is recorded" in heard and same(images, bench.images)
        return Verdict("disk full: the images all the same", heard, right, bystander.ends_well(), True)


def verdict(
    bench: Bench, case: str, heard: str, reason: str, bystander: Bystander | None, recording: Path | None
) -> Verdict:
    """Of a case whose session had sent all its data."""
    replays = recording is not None and same(bench.replayed(recording), bench.images)
    return Verdict(case, heard, reason in heard, bystander is None or bystander.goes_on(), replays)


def kill_worker(server: int) -> None:
    """Kills the process that works longest: the bystander's waits for data."""
    time.sleep(1.0)
    forks = [p for p in psutil.Process(server).children(recursive=True) if "forkserver" in " ".join(p.cmdline())]
    max(forks, key=lambda p: p.create_time()).kill()


def main(names: Sequence[str]) -> int:
    """Prints a line for each case and the sums; the exit status says whether all was good."""
    campaigns = {"gadgets": gadgets, "gadgetron": gadgetron, "cuts": cuts, "others": others}
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = prepared(Path(folder))
        for name in names or campaigns:
            for found in campaigns[name](bench):
                verdicts.append(found)
                marks = " ".join("yes" if good else "NO " for good in (found.right, found.others, found.replays))
                print(f"{found.case:55s} {marks}  {found.heard[:110]}", flush=True)
    bad = [found.case for found in verdicts if not found.good]
    for what in ("right", "others", "replays"):
        print(f"{what:8s} {sum(getattr(found, what) for found in verdicts)} of {len(verdicts)}")
    return len(bad)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
