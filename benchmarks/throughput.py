"""Throughput of the spine: a raw file through client and server into a gadget that only counts.

    python benchmarks/throughput.py [--acquisitions 6000] [--channels 20] [--samples 512] [--repeats 5]

Rows, each timed in turn so that a noisy machine strikes all alike; medians are printed:
    file            reading the .h5 in blocks
    bare loop       the `ismrmrd` package's serialisation over a loopback socket, from memory
    ours            `replay --to` a `serve` process, from the file, into a counting gadget
    preview.xml     the same with preview.xml, once, with the time in each gadget
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
from ismrmrd.hdf5 import acquisition_dtype
from ismrmrd.serialization import ProtocolDeserializer, ProtocolSerializer

from gadgets.gadget import ACQUISITIONS, Gadget
from pipelines.replay import Replay, replay_to
from pipelines.session import Site
from pipelines.streams.file import RawFile
from pipelines.streams.server import Limits, Server

LINES = 250  # to a slice

COUNT_XML = """<configuration><version>2</version><stream><external>
<execute name="pipelines.streams.gadgetron" target="run_chain" type="python"/>
<configuration><gadget name="Count"/></configuration></external></stream></configuration>"""


class Count(Gadget[ismrmrd.Acquisition]):
    """Counts acquisitions and says how many came."""

    takes = ismrmrd.Acquisition
    needs = removes = frozenset({ACQUISITIONS})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def take(self, item: ismrmrd.Acquisition) -> Iterator[object]:
        """Counts."""
        self.count += 1
        return iter(())

    def finish(self) -> Iterator[object]:
        """Says how many."""
        self.session.tell(f"counted {self.count}")
        return iter(())


def make_file(path: Path, acquisitions: int, channels: int, samples: int) -> None:
    """A raw file of whole Cartesian slices: signal of rank 6 over the coils around the centre, and noise."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        group = file.create_group("dataset")
        group.create_dataset("xml", data=[header_xml(channels, samples).encode()], dtype=h5py.string_dtype("ascii"))
        data = group.create_dataset("data", (acquisitions,), acquisition_dtype, maxshape=(None,), chunks=(1,))
        for start in range(0, acquisitions, 256):
            numbers = np.arange(start, min(start + 256, acquisitions))
            data[start : start + 256] = entries(numbers, channels, samples, rng)


def entries(numbers: np.ndarray, channels: int, samples: int, rng: np.random.Generator) -> np.ndarray:
    """One block of file entries."""
    block = np.zeros(len(numbers), acquisition_dtype)
    head = block["head"]
    head["version"], head["number_of_samples"], head["center_sample"] = 1, samples, samples // 2
    head["active_channels"] = head["available_channels"] = channels
    head["scan_counter"], head["sample_time_us"] = numbers, 5
    head["idx"]["kspace_encode_step_1"], head["idx"]["slice"] = numbers % LINES, numbers // LINES
    head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
    mixing = np.random.default_rng(1).standard_normal((channels, 6), dtype=np.float32)
    decay = np.exp(-(np.linspace(-8, 8, samples, dtype=np.float32).repeat(2) ** 2))
    for number, entry in zip(numbers, block, strict=True):
        strength = 100 * np.exp(-((16 * (number % LINES) / LINES - 8) ** 2))
        signal = mixing @ (strength * decay * rng.standard_normal((6, 2 * samples), dtype=np.float32))
        entry["data"] = (signal + rng.standard_normal((channels, 2 * samples), dtype=np.float32)).ravel()
        entry["traj"] = np.zeros(0, np.float32)
    return block


def header_xml(channels: int, samples: int) -> str:
    """An MRD header for `samples` x `LINES`, twice oversampled."""

    def space(x: int, fov: float) -> ismrmrd.xsd.encodingSpaceType:
        return ismrmrd.xsd.encodingSpaceType(
            matrixSize=ismrmrd.xsd.matrixSizeType(x=x, y=LINES, z=1),
            fieldOfView_mm=ismrmrd.xsd.fieldOfViewMm(x=fov, y=256.0, z=5.0),
        )

    header = ismrmrd.xsd.ismrmrdHeader(
        experimentalConditions=ismrmrd.xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123_000_000),
        acquisitionSystemInformation=ismrmrd.xsd.acquisitionSystemInformationType(receiverChannels=channels),
        encoding=[
            ismrmrd.xsd.encodingType(
                encodedSpace=space(samples, 512.0),
                reconSpace=space(samples // 2, 256.0),
                trajectory=ismrmrd.xsd.trajectoryType("cartesian"),
                encodingLimits=ismrmrd.xsd.encodingLimitsType(
                    kspace_encoding_step_1=ismrmrd.xsd.limitType(minimum=0, maximum=LINES - 1, center=LINES // 2)
                ),
            )
        ],
    )
    return header.toXML()


def serve(pipe: Pipe) -> None:
    """Runs a server in a process of its own; sends its port."""
    from pipelines.registry import installed_gadgets

    site = Site(device="cpu", registry={**installed_gadgets(), "Count": Count})
    with Server("127.0.0.1", 0, site, Limits()) as server:
        pipe.send(server.server_address[1])
        server.serve_forever()


def read_file(path: Path) -> None:
    """Reads all acquisitions."""
    with RawFile(path) as raw:
        for _ in raw.items():
            pass


def stream_file(path: Path, pipeline: str, port: int) -> list[str]:
    """Streams the file to the server; returns what it told."""
    notes: list[str] = []
    with RawFile(path) as raw:
        job = Replay(raw=path, pipeline=pipeline)
        replay_to(("127.0.0.1", port), job, raw, lambda item: None, notes.append, lambda items, total: items, None)
    return notes


def bare_loop(acquisitions: list[ismrmrd.Acquisition], channels: int, samples: int) -> None:
    """The `ismrmrd` package alone: one process writes, another reads."""
    listener = socket.create_server(("127.0.0.1", 0))
    reader = multiprocessing.Process(target=_read_bare, args=(listener.getsockname()[1],))
    reader.start()
    sock, _ = listener.accept()
    with sock, sock.makefile("wb") as stream:
        serializer = ProtocolSerializer(stream)
        for acquisition in acquisitions:
            serializer.serialize(acquisition)
        serializer.close()
    listener.close()
    reader.join()


def _read_bare(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as sock, sock.makefile("rb") as stream:
        for _ in ProtocolDeserializer(stream).deserialize():
            pass


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("acquisitions", 6000), ("channels", 20), ("samples", 512), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    shape = arguments.acquisitions, arguments.channels, arguments.samples
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(theirs,), daemon=True)
    server.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        raw, count = Path(folder, "raw.h5"), Path(folder, "count.xml")
        make_file(raw, *shape)
        count.write_text(COUNT_XML)
        with RawFile(raw) as file:
            memory = list(file.items())
        rows = {
            "file": lambda: read_file(raw),
            "bare loop": lambda: bare_loop(memory, *shape[1:]),
            "ours": lambda: stream_file(raw, str(count), port),
        }
        times: dict[str, list[float]] = {name: [] for name in rows}
        for _ in range(arguments.repeats):
            for name, action in rows.items():
                times[name].append(timed(action))
        size = raw.stat().st_size / 1e6
        print(f"{shape[0]} acquisitions x {shape[1]} channels x {shape[2]} samples, {size:.0f} MB")
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            print(f"{name:12s} {middle:6.2f} s  ({min(seconds):.2f} to {max(seconds):.2f})  {size / middle:6.0f} MB/s")
        began = time.perf_counter()
        notes = stream_file(raw, "preview", port)
        print(f"preview.xml  {time.perf_counter() - began:6.2f} s  (one run)\n{notes[-1]}")
    server.terminate()


if __name__ == "__main__":
    main()
