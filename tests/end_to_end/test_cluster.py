"""A simulated scan whose frames are computed on a Dask cluster, against the same in one process."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distributed import LocalCluster

from benchmarks.cluster import dask_cluster, images_of, require_equal, simulate_slices
from gadgets.frame import Frame, Samples, Space
from gadgets.gadget import Gadget, Session
from pipelines.chain import Chain
from pipelines.cli import main
from pipelines.definition import find_definition
from pipelines.errors import ClusterError, GadgetError, PeerVanished
from pipelines.executors import cluster as cluster_module
from pipelines.executors.cluster import Cluster
from pipelines.executors.part_solver import solver_of_this_machine
from pipelines.header import read_header
from pipelines.session import Site, open_chain
from pipelines.simulate import SimulationSettings, simulate
from pipelines.streams.file import RawFile

from dying_gadget import Dies
from scans import header

LOOPBACK = "127.0.0.1:0"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    path = tmp_path_factory.mktemp("small") / "raw.h5"
    simulate(path, SimulationSettings(matrix=(32, 32), coils=3, shots=2, slices=3))
    return path


@pytest.fixture(scope="module")
def scheduler():
    """Two workers in threads of this process."""
    with LocalCluster(processes=False, n_workers=2, threads_per_worker=1, dashboard_address=LOOPBACK) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def session(tmp_path):
    """Runs a file through a pipeline; yields what comes out."""

    def run(raw, pipeline="cg_sense", cluster=None, tell=lambda text: None, require_client=lambda: None, **settings):
        site = Site(device="cpu", state_folder=tmp_path, cluster=cluster)
        definition = find_definition(pipeline, site.definitions).override(settings, "test", local=True)
        with RawFile(raw) as file:
            chain = open_chain(definition, read_header(file.header_xml), site, tell, require_client)
            yield from chain.run(file.items())

    return run


def by_series(images: list[ismrmrd.Image]) -> dict[int, list[ismrmrd.Image]]:
    return {index: [i for i in images if i.image_series_index == index] for index in (1, 2)}


def assert_equal(images, expected):
    assert len(images) == len(expected)
    for series, its_images in by_series(expected).items():
        got = by_series(images)[series]
        assert [image.getHead() for image in got] == [image.getHead() for image in its_images]
        for image, other in zip(got, its_images, strict=True):
            np.testing.assert_array_equal(image.data, other.data)
            assert image.meta == other.meta


@pytest.fixture
def one_thread():
    """Sums come out otherwise with another number of threads, which a thread of Dask has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_images_previews_notes_and_histories_are_those_of_one_process(small, session, scheduler):
    told_here, told_there = [], []
    quick = {"CoilMaps.method": "walsh", "CgSense.iterations": "5"}
    here = list(session(small, tell=told_here.append, **quick))
    there = list(session(small, cluster=scheduler, tell=told_there.append, **quick))
    assert_equal(there, here)
    assert told_there == told_here
    assert len(here) == 6


def frame() -> Frame:
    space = Space((1, 4, 4), (1.0, 4.0, 4.0), (1, 4, 4), (1.0, 4.0, 4.0))
    nothing = torch.zeros(0)
    return Frame(Samples(nothing, nothing), nothing, space, ismrmrd.AcquisitionHeader())


class Raises(Gadget[Frame]):
    """What no gadget should."""

    takes = Frame
    per_frame = True

    def take(self, item):
        raise KeyError("no such thing")


def test_a_gadget_that_fails_on_a_worker_says_what_it_says_here(scheduler):
    session = Session(header())
    running = Chain([Raises()], session, executor=Cluster(scheduler, session.device))
    label = "slice 0, contrast 0, repetition 0"
    with pytest.raises(GadgetError, match=f"^Raises failed on {label}: KeyError: 'no such thing'$"):
        list(running.run([frame()]))


class Endless(Gadget[Frame]):
    """Computes until nobody wants it any more."""

    takes = Frame
    per_frame = True
    began, ended = threading.Event(), threading.Event()

    def take(self, item):
        self.began.set()
        try:
            while True:
                self.session.require_client()
                time.sleep(0.01)
                yield from ()
        except PeerVanished:
            self.ended.set()


def test_a_client_that_leaves_stops_a_gadget_that_is_at_work(scheduler):
    def require_client():
        if Endless.began.wait(0):
            raise PeerVanished("the peer is gone")

    session = Session(header(), require_client=require_client)
    running = Chain([Endless()], session, executor=Cluster(scheduler, session.device))
    with pytest.raises(PeerVanished, match=r"^the peer is gone$"):
        list(running.run([frame()]))
    assert Endless.ended.wait(5)


def test_a_cluster_without_workers_is_reported(small, session, monkeypatch):
    monkeypatch.setattr(cluster_module, "PATIENCE_S", 0.2)
    told = pytest.raises(ClusterError, match=r"has had no worker for 0.2 s; start one .*: dask worker inproc://")
    with LocalCluster(processes=False, n_workers=0, dashboard_address=LOOPBACK) as empty, told:
        list(session(small, cluster=empty.scheduler_address))


@pytest.mark.slow
def test_images_are_the_same_when_a_worker_is_killed_in_the_middle(tmp_path):
    """Twenty slices on three processes, of which one dies."""
    raw, told, images = tmp_path / "raw.h5", [], []
    simulate_slices(raw, 20, 64)
    expected = list(images_of(raw, "cg_sense"))
    with dask_cluster(2) as processes:
        for image in images_of(raw, "cg_sense", processes.address, told.append):
            images.append(image)
            if len(images) == 10:
                processes.workers[0].kill()
        assert processes.workers[0].wait(10) == -9
        assert processes.workers[1].poll() is None
    require_equal(images, expected)
    assert len(expected) == 40
    assert any("is gone" in text and "(attempt 2)" in text for text in told)


@pytest.mark.slow
def test_a_frame_that_kills_its_workers_is_named_and_given_up(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    told = []
    with dask_cluster(4) as processes:
        session = Session(header(), tell=told.append)
        running = Chain([Dies()], session, executor=Cluster(processes.address, session.device))
        with pytest.raises(
            ClusterError, match=r"^Dies on slice 0, contrast 0, repetition 0: 3 workers .* died over it"
        ):
            list(running.run([frame()]))
    assert sum("is gone" in text for text in told) >= 2


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_session_with_an_error(tmp_path):
    raw, images = tmp_path / "raw.h5", []
    simulate_slices(raw, 8, 64)
    began = None
    with dask_cluster(1) as processes, pytest.raises(ClusterError, match="cluster"):
        for image in images_of(raw, "cg_sense", processes.address):
            images.append(image)
            if began is None:
                processes.scheduler.kill()
                began = time.monotonic()
    assert time.monotonic() - began < 60


def test_a_folder_is_spread_over_a_cluster_and_its_workers_forget_it(small, scheduler, tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for name in ("a.h5", "b.h5"):
        shutil.copy(small, raw / name)
    arguments = ["replay", raw, "-p", "preview", "-o", out, "--cluster", scheduler]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "b.h5"]
    deadline = time.monotonic() + 5
    while solver_of_this_machine()._open and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not solver_of_this_machine()._open
