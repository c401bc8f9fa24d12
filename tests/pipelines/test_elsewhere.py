"""Parts of chains that are computed elsewhere, on an executor of threads that tests hold in their hands."""

import threading
import time

import ismrmrd
import pytest
import torch

from gadgets.cg_sense import CgSense
from gadgets.coil_compression import CoilCompression
from gadgets.coil_maps import CoilMaps
from gadgets.field_map import FieldMap
from gadgets.frame import Frame, Samples, SeriesImage
from gadgets.gadget import IMAGE, Gadget, Session
from gadgets.preview import Preview
from pipelines.chain import Chain
from pipelines.errors import ClusterError, GadgetError, PeerVanished
from pipelines.executors import executor, part_solver
from pipelines.executors.executor import Part, runs
from pipelines.executors.parcel import Parcel
from pipelines.executors.part_solver import MOST_OPEN, PartSolver
from pipelines.executors.pump import Pump
from pipelines.header import read_header
from pipelines.session import Site

from mrd_items import HEADER_XML, acquisition
from phantom_scan import SPACE


class Pending:
    """A frame that is solved when the test says so."""

    def __init__(self, executor, part, frame, noise_known):
        self.executor, self.part, self.noise_known = executor, part, noise_known
        self.frame = frame
        self.parcel, self.known = Parcel.of(frame)
        self.solved = threading.Event()
        self.cancelled = False

    def solve(self):
        self.solved.set()
        self.executor.nudge()

    def done(self):
        return self.solved.is_set()

    def result(self):
        solver = self.executor.solver
        items, timings = solver.solve(self.part, self.parcel, self.noise_known, self.executor.told.append, lambda: None)
        return items.open(torch.device("cpu"), self.known)[0], timings

    def cancel(self):
        self.cancelled = True


class ByHand:
    """An executor whose frames are done when the test says so, or at once."""

    def __init__(self, site, slots=2, at_once=False):
        self.solver = PartSolver(site)
        self.nudge = lambda: None
        self.submitted, self.told = [], []
        self.most = slots
        self.at_once = at_once
        self.in_flight = []
        self.closed = False

    def submit(self, part, frame, noise_known):
        pending = Pending(self, part, frame, noise_known)
        self.submitted.append(pending)
        self.in_flight.append(sum(not p.done() for p in self.submitted))
        if self.at_once:
            pending.solve()
        return pending

    def slots(self):
        return self.most

    def notes(self):
        while self.told:
            yield self.told.pop(0)

    def wait(self, seconds):
        time.sleep(0.002)

    def close(self):
        self.closed = True


class MakesFrames(Gadget[ismrmrd.Acquisition]):
    takes = ismrmrd.Acquisition

    def take(self, item):
        head = item.getHead()
        head.idx.slice = item.scan_counter
        kspace = torch.full((2, 1, 4), float(item.scan_counter), dtype=torch.complex64)
        yield Frame(Samples(kspace, torch.zeros(2, 1, 4)), torch.zeros(1, 4), SPACE, head, history=["made"])


class Doubles(Gadget[Frame]):
    """Sends the sum of the samples twice over as an image, before the frame and as part of its history."""

    takes = Frame
    adds = frozenset({IMAGE})
    per_frame = True

    def take(self, item):
        if item.reference.idx.slice == 13:
            raise ValueError("thirteen is too many")
        self.session.tell("a warning (told once)")
        item.image = 2 * item.samples.kspace.sum() * torch.ones(SPACE.shape)
        item.history.append(f"{type(self).__name__}, seed {self.session.seed}, known {self.session.noise_known}")
        yield SeriesImage("image", item.image, item)
        item.history.append("gone on")
        yield item


class Counts(Gadget[Frame]):
    """Must see all frames in order, in the process of the session."""

    takes = Frame

    def open(self, session):
        super().open(session)
        self.seen = []

    def take(self, item):
        self.seen.append(item)
        yield item


class Exports(Gadget[SeriesImage]):
    takes = SeriesImage

    def open(self, session):
        super().open(session)
        self.seen = []

    def take(self, item):
        self.seen.append(item)
        image = ismrmrd.Image.from_array(item.data.real.float().numpy()[None], transpose=False)
        image.image_index = item.frame.reference.idx.slice
        yield image


@pytest.fixture
def hand(site):
    return ByHand(site)


def chain(by, *gadgets, **session) -> Chain:
    return Chain(gadgets, Session(read_header(HEADER_XML), **session), executor=by)


def indices(items):
    return [item.image_index for item in items if isinstance(item, ismrmrd.Image)]


def test_gadgets_of_single_frames_go_elsewhere_and_a_preview_does_not_wait_for_the_solver():
    gadgets = [CoilCompression(), CoilMaps(), Preview(), CgSense(), FieldMap(), CgSense(), Exports()]
    assert [[*stages] for stages in runs(gadgets)] == [[0, 1, 2], [3], [5]]


def test_images_leave_in_the_order_of_the_frames_whatever_is_done_first(hand):
    hand.most = 4
    running = chain(hand, MakesFrames(), Doubles(), Exports()).run(map(acquisition, range(4)))
    out = []

    def collect():
        out.extend(indices(running))

    thread = threading.Thread(target=collect)
    thread.start()
    while len(hand.submitted) < 4:
        time.sleep(0.002)
    for number in (3, 1, 2):
        hand.submitted[number].solve()
    time.sleep(0.05)
    assert out == []
    hand.submitted[0].solve()
    thread.join(5)
    assert out == [0, 1, 2, 3]


def test_no_more_frames_are_in_flight_than_there_are_slots(hand):
    running = chain(hand, MakesFrames(), Doubles(), Exports()).run(map(acquisition, range(6)))

    def solve_all():
        done = 0
        while done < 6:
            if len(hand.submitted) > done:
                time.sleep(0.01)
                hand.submitted[done].solve()
                done += 1

    thread = threading.Thread(target=solve_all)
    thread.start()
    assert indices(running) == [*range(6)]
    thread.join()
    assert max(hand.in_flight) == 2


def test_an_image_leaves_while_the_scanner_pauses(hand):
    pause = threading.Event()

    def scanner():
        yield acquisition(1)
        assert pause.wait(10)

    running = chain(hand, MakesFrames(), Doubles(), Exports()).run(scanner())
    threading.Timer(0.05, lambda: hand.submitted[0].solve()).start()
    assert next(running).image_index == 1
    pause.set()
    assert list(running) == []


def test_what_comes_back_is_what_would_have_been_made_here(site):
    here = [MakesFrames(), Doubles(), Counts(), Exports()]
    there = [MakesFrames(), Doubles(), Counts(), Exports()]
    by = ByHand(site, at_once=True)
    expected = list(chain(None, *here, seed=7, noise_known=False).run([acquisition(5)]))
    got = list(chain(by, *there, seed=7, noise_known=False).run([acquisition(5)]))
    assert [image.data.tolist() for image in got] == [image.data.tolist() for image in expected]
    (frame,), (its_own,) = there[2].seen, here[2].seen
    assert frame.history == its_own.history == ["made", "Doubles, seed 7, known False", "gone on"]
    assert frame.label == its_own.label
    assert torch.equal(frame.image, its_own.image)


def test_an_image_keeps_the_history_of_the_moment_at_which_it_was_yielded(site):
    export = Exports()
    list(chain(ByHand(site, at_once=True), MakesFrames(), Doubles(), export).run([acquisition(5)]))
    (item,) = export.seen
    assert item.frame.history[-1].startswith("Doubles")


def test_tensors_that_the_session_has_do_not_travel_back(hand):
    kspace, trajectory = torch.randn(2, 1, 4, dtype=torch.complex64), torch.zeros(2, 1, 4)
    there, known = Parcel.of({"kspace": kspace, "again": kspace, "trajectory": trajectory})
    assert len(there.arrays) == 2
    received, of_theirs = there.open(torch.device("cpu"))
    assert received["kspace"] is received["again"]
    assert torch.equal(received["kspace"], kspace)
    back, _ = Parcel.of([received["kspace"], received["trajectory"] + 1], of_theirs)
    assert len(back.arrays) == 1
    (same, new), _ = back.open(torch.device("cpu"), known)
    assert same is kspace
    assert torch.equal(new, trajectory + 1)


def test_conjugate_and_strided_tensors_arrive_as_they_are():
    tensor = torch.randn(4, 6, dtype=torch.complex64)
    sent = [tensor.conj(), tensor.t(), tensor[:, ::2], tensor[0]]
    received, _ = Parcel.of(sent)[0].open(torch.device("cpu"))
    assert all(map(torch.equal, received, sent))


def test_work_done_elsewhere_is_counted_as_that_of_the_gadget(site):
    running = chain(ByHand(site, at_once=True), MakesFrames(), Doubles(), Exports())
    list(running.run(map(acquisition, range(3))))
    assert [(timing.gadget, timing.items) for timing in running.timings] == [
        ("MakesFrames", 3),
        ("Doubles", 3),
        ("Exports", 3),
    ]
    assert running.timings[1].seconds > 0
    assert (running.frames, running.let_out) == (3, {"Image": 3})


def test_a_note_is_passed_on_and_what_is_told_once_is_told_once_by_all_workers_together(site):
    told = []
    list(
        chain(ByHand(site, at_once=True), MakesFrames(), Doubles(), Exports(), tell=told.append).run(
            map(acquisition, range(3))
        )
    )
    assert told == ["a warning (told once)"]


def test_a_gadget_that_raises_elsewhere_gives_the_error_that_it_gives_here(site):
    errors = []
    for by in (None, ByHand(site, at_once=True)):
        with pytest.raises(GadgetError) as caught:
            list(chain(by, MakesFrames(), Doubles(), Exports()).run([acquisition(13)]))
        errors.append(str(caught.value))
    assert errors[0] == errors[1] == "Doubles failed on slice 13, contrast 0, repetition 0: thirteen is too many"


def test_a_client_that_leaves_cancels_what_is_in_flight(hand):
    def require_client():
        raise PeerVanished("the peer is gone")

    running = chain(hand, MakesFrames(), Doubles(), Exports(), require_client=require_client)
    with pytest.raises(PeerVanished):
        list(running.run(map(acquisition, range(5))))
    assert [pending.cancelled for pending in hand.submitted] == [True] * 2
    assert hand.closed


def test_an_error_of_the_source_comes_after_nothing_and_ends_what_is_in_flight(hand):
    def broken():
        yield acquisition(0)
        raise PeerVanished("cut off")

    with pytest.raises(PeerVanished, match="cut off"):
        list(chain(hand, MakesFrames(), Doubles(), Exports()).run(broken()))
    assert hand.submitted[0].cancelled


def test_other_versions_are_refused(site, monkeypatch):
    ours = executor.versions()
    monkeypatch.setattr(part_solver, "versions", lambda: {**ours, "torch": "1.0"})
    with pytest.raises(ClusterError, match=r"has other versions \(spinstream .*, torch 1.0\) than .*torch 2"):
        list(chain(ByHand(site, at_once=True), MakesFrames(), Doubles(), Exports()).run([acquisition(0)]))


def test_builds_of_torch_for_other_devices_are_one_version(monkeypatch):
    monkeypatch.setattr(executor.torch, "__version__", "2.13.0+cu130")
    assert executor.versions()["torch"] == "2.13.0"


def test_parts_are_opened_once_forgotten_at_the_end_and_bounded(site):
    opened = []

    class Opens(Doubles):
        def open(self, session):
            super().open(session)
            opened.append(self)

    solver = PartSolver(site)
    frame = next(MakesFrames().take(acquisition(1)))
    header = read_header(HEADER_XML)

    def solve(part):
        solver.solve(part, Parcel.of(frame)[0], True, lambda text: None, lambda: None)

    parts = [Part.of([Opens()], header=header, seed=0, frames_wanted=False, priority=0) for _ in range(MOST_OPEN + 1)]
    solve(parts[0])
    solve(parts[0])
    assert len(opened) == 1
    solver.forget(parts[0].key)
    solve(parts[0])
    assert len(opened) == 2
    for part in parts:
        solve(part)
    assert len(opened) == 2 + MOST_OPEN
    solve(parts[0])  # the oldest has gone
    assert len(opened) == 3 + MOST_OPEN


def test_a_pump_that_is_stopped_reads_no_further():
    read = []

    def source():
        for number in range(10**6):
            read.append(number)
            yield acquisition(number)

    pump = Pump(source())
    assert next(iter(pump)).scan_counter == 0
    pump.stop()
    count = len(read)
    time.sleep(0.02)
    assert len(read) == count < 10**6


def test_a_site_without_its_cluster_says_so():
    from pipelines.executors.cluster import Cluster

    with pytest.raises(ClusterError, match="there is no cluster at nowhere://x.*dask scheduler"):
        Cluster("nowhere://x", Site(device="cpu").torch_device())
    with pytest.raises(ClusterError, match="tls://x:1 needs keys and certificates in Dask's configuration"):
        Cluster("tls://x:1", Site(device="cpu").torch_device())


def test_a_pipeline_of_which_nothing_may_compute_elsewhere_says_so(hand):
    told = []
    assert indices(chain(hand, Exports(), tell=told.append).run([])) == []
    assert told == ["No gadget of this pipeline may compute elsewhere; everything is computed here."]
