"""What a cluster costs and survives: a scan of many slices in this process, and on a Dask cluster of three processes.

    python benchmarks/cluster.py [--slices 20] [--matrix 64] [--pipeline cg_sense] [--workers 2] [--kill]

Prints seconds in this process and on the cluster, and what a frame costs besides its computation: the time of one
frame after another whose gadget does nothing. With --kill, one worker is killed (SIGKILL) in the middle; images must be
those of this process in any case.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ismrmrd
import numpy as np
import torch
from distributed import Client

from gadgets.frame import Frame, Samples, SeriesImage, Space
from gadgets.gadget import Gadget, Session
from pipelines.chain import Chain
from pipelines.definition import find_definition
from pipelines.executors.cluster import Cluster
from pipelines.header import read_header
from pipelines.session import Site, open_chain
from pipelines.simulate import SimulationSettings, simulate
from pipelines.streams.file import RawFile
from recon_core.simulation.phantom import HIGHEST_MM, LOWEST_MM, head

START_SECONDS = 60.0


@dataclass
class Processes:
    """A scheduler and its workers on this machine."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]


@contextmanager
def dask_cluster(workers: int) -> Iterator[Processes]:
    """The two documented commands, each worker with one thread, until the end of the context."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "scheduler.json"
        scheduler = _dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(place))
        started = [scheduler]
        try:
            _wait_for(lambda: place.exists() and b"address" in place.read_bytes())
            join = ["worker", "--scheduler-file", str(place), "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny"]
            started += [_dask(*join, "--local-directory", folder) for _ in range(workers)]
            cluster = Processes(_address(place), scheduler, started[1:])
            _wait_for(lambda: _threads(cluster.address) == workers)
            yield cluster
        finally:
            for process in started:
                process.kill()
                process.wait()


def simulate_slices(raw: Path, slices: int, matrix: int) -> None:
    """A scan of slices through one head, as near to each other as there need be."""
    levels = np.linspace(LOWEST_MM, HIGHEST_MM, slices).tolist()
    image, _ = head((matrix, matrix), 220 / matrix, levels, torch.Generator().manual_seed(0))
    np.savez(raw.with_suffix(".npz"), image=image.numpy())
    simulate(raw, SimulationSettings(matrix=(matrix, matrix), slices=slices, image=str(raw.with_suffix(".npz"))))


def images_of(
    raw: Path, pipeline: str, cluster: str | None = None, tell: Callable[[str], None] = lambda text: None
) -> Iterator[ismrmrd.Image]:
    """The images of a file, as they come."""
    with tempfile.TemporaryDirectory() as state, RawFile(raw) as file:
        site = Site(device="cpu", state_folder=Path(state), cluster=cluster)
        chain = open_chain(find_definition(pipeline, site.definitions), read_header(file.header_xml), site, tell)
        yield from chain.run(file.items())


def require_equal(images: list[ismrmrd.Image], expected: list[ismrmrd.Image]) -> None:
    """Series by series: headers, pixels and order.

    Raises:
        AssertionError: they differ.
    """
    assert len(images) == len(expected), f"expected {len(expected)} images, got {len(images)}"
    images, expected = (sorted(some, key=lambda image: image.image_series_index) for some in (images, expected))
    for image, other in zip(images, expected, strict=True):
        assert image.getHead() == other.getHead()
        np.testing.assert_array_equal(image.data, other.data)


class Nothing(Gadget[Frame]):
    """Makes an image of zeros."""

    takes = Frame
    per_frame = True

    def take(self, item: Frame) -> Iterator[object]:
        """Yields the image."""
        yield SeriesImage("image", torch.zeros(item.space.shape), item)


def overhead(cluster: str, megabytes: float, frames: int = 20) -> float:
    """Seconds for a frame to go to a worker and an image to come back, one after the other."""
    conditions = ismrmrd.xsd.experimentalConditionsType(H1resonanceFrequency_Hz=123_000_000)
    session = Session(ismrmrd.xsd.ismrmrdHeader(experimentalConditions=conditions))
    kspace = torch.randn(8, 16, int(megabytes * 1e6 / 8 / 8 / 16), dtype=torch.complex64)
    space = Space((1, 64, 64), (1.0, 1.0, 1.0), (1, 64, 64), (1.0, 1.0, 1.0))
    frame = Frame(Samples(kspace, torch.zeros(2, 16, 4)), torch.zeros(16, 4), space, ismrmrd.AcquisitionHeader())
    chain = Chain([Nothing()], session, executor=(executor := Cluster(cluster, session.device)))
    executor.slots = lambda: 1  # type: ignore[method-assign]
    began = time.perf_counter()
    list(chain.run([frame] * frames))
    return (time.perf_counter() - began) / frames


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=20)
    parser.add_argument("--matrix", type=int, default=64)
    parser.add_argument("--pipeline", default="cg_sense")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, dask_cluster(options.workers) as cluster:
        raw = Path(folder) / "raw.h5"
        simulate_slices(raw, options.slices, options.matrix)
        began = time.perf_counter()
        expected = list(images_of(raw, options.pipeline))
        print(f"in this process: {time.perf_counter() - began:.2f} s, {len(expected)} images")
        list(images_of(raw, options.pipeline, cluster.address))  # warms the workers' caches
        began, images = time.perf_counter(), []
        for image in images_of(raw, options.pipeline, cluster.address, print):
            images.append(image)
            if options.kill and len(images) == options.slices // 2:
                cluster.workers[0].kill()
        print(f"on {options.workers} workers: {time.perf_counter() - began:.2f} s, {len(images)} images")
        require_equal(images, expected)
        print("all images are equal")
        for megabytes in (0.1, 1, 10):
            overhead(cluster.address, megabytes, 2)
            print(
                f"a frame of {megabytes:g} MB there, an image back: {1e3 * overhead(cluster.address, megabytes):.1f} ms"
            )


def _dask(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


def _address(place: Path) -> str:
    return str(json.loads(place.read_text())["address"])


def _threads(address: str) -> int:
    with Client(address, set_as_default=False) as client:
        return sum(client.nthreads().values())


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the cluster was not there after {START_SECONDS:g} s")
        time.sleep(0.1)


if __name__ == "__main__":
    main()
