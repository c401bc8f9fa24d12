"""Memory of the server and the client while a multi-slice series streams for minutes.

    python benchmarks/memory.py [--minutes 10] [--pipeline cg_sense] [--readouts-per-second 200]

Streams a simulated multi-slice scan again and again, each time as the next repetition, at scanner pace, and prints the
resident memory of both processes as it goes. Flat means: no more in the last third than in the second.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ismrmrd

from pipelines.simulate import SimulationSettings, simulate
from pipelines.streams.client import stream
from pipelines.streams.file import RawFile
from pipelines.wire import ConfigFile

SCAN = SimulationSettings(trajectory="spiral", matrix=(96, 96), coils=8, shots=8, readout_ms=6.0, slices=6)
SAMPLE_SECONDS = 10.0


def resident_mib(process: int | str) -> float:
    """Resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {process} has no resident memory")


def endless(raw: Path, seconds: float, pause: float) -> Iterator[ismrmrd.Acquisition]:
    """The file's readouts as repetition 0, 1, 2, ... until the time is over."""
    began, repetition = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        with RawFile(raw) as file:
            for item in file.items():
                noise = item.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
                if noise and repetition:
                    continue
                item.clearFlag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
                item.idx.repetition = repetition
                yield item
                time.sleep(pause)
        repetition += 1


def main() -> None:
    """Prints memory over time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--pipeline", default="cg_sense")
    parser.add_argument("--readouts-per-second", type=float, default=200)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        raw = Path(folder, "raw.h5")
        simulate(raw, SCAN)
        host, _, port = server.stdout.readline().split()[-1].rpartition(":")
        began = last = time.monotonic()
        samples: list[tuple[float, float, float]] = []
        images = 0

        def count(item: ismrmrd.Image) -> None:
            nonlocal last, images
            images += 1
            if time.monotonic() - last > SAMPLE_SECONDS:
                last = time.monotonic()
                samples.append((last - began, resident_mib(server.pid), resident_mib("self")))
                print(
                    "{:6.0f} s  server {:7.1f} MiB  client {:7.1f} MiB".format(*samples[-1]),
                    f" {images} images",
                    flush=True,
                )

        items = endless(raw, 60 * arguments.minutes, 1 / arguments.readouts_per_second)
        with RawFile(raw) as file:
            stream((host, int(port)), ConfigFile(arguments.pipeline), file.header_xml, items, count, lambda text: None)
        server.terminate()
    for name, column in (("server", 1), ("client", 2)):
        thirds = [
            statistics.mean(s[column] for s in samples[i * len(samples) // 3 : (i + 1) * len(samples) // 3])
            for i in range(3)
        ]
        print(f"{name}: mean of each third of the time {', '.join(f'{t:.1f}' for t in thirds)} MiB")


if __name__ == "__main__":
    main()
