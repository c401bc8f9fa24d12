"""What becomes of frames that do not fit into the memory of a GPU; here they only say that they are on one."""

from __future__ import annotations

import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from gadgets import prior as priors
from gadgets.cg_sense import CgSense
from gadgets.coil_maps import CoilMaps
from gadgets.diffusion_solver import DiffusionSolver
from gadgets.field_map import FieldMap
from gadgets.frame import Frame
from gadgets.frame_assembly import FrameAssembly
from gadgets.image_export import ImageExport
from gadgets.joint_solver import JointSolver
from gadgets.memory import begun, moved, out_of_memory, taken, taken_on_the_cpu
from gadgets.trajectory import Trajectory
from pipelines.chain import Chain
from recon_core.priors.prior import Convention, Prior

from phantom_scan import Phantom, cartesian, error, head
from scans import header, line, run, session

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
COILS = 4


@pytest.fixture
def gpu(monkeypatch) -> None:
    """Every frame is on one until it is moved."""

    def on(frame: Frame, device: torch.device) -> Frame:
        moved = replace(frame)
        moved.said = device
        return moved

    monkeypatch.setattr(Frame, "device", property(lambda frame: getattr(frame, "said", GPU)))
    monkeypatch.setattr(Frame, "on", on)


@pytest.fixture(autouse=True)
def prior(monkeypatch) -> None:
    """Lets all images through."""
    known = Prior(lambda channels, sigma: channels, Convention("maximum", 0.005, 2.0), "none")
    monkeypatch.setattr(priors, "load_prior", lambda name, device: known)


class OnFullGpu:
    """A solver for which so many slices fit."""

    room = 0

    def _results(self, frames):
        self._device = frames[0].device
        yield from super()._results(frames)

    def _found(self, batch, kspace, run):
        if self._device == GPU and len(kspace) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super()._found(batch, kspace, run)


class Diffusion(OnFullGpu, DiffusionSolver):
    pass


class Joint(OnFullGpu, JointSolver):
    pass


class Singles(Diffusion):
    room = 1


def scanned(with_maps: bool = True, **counters) -> Frame:
    frame = Phantom.scanned(cartesian(), COILS, 1.0, 20 * head()).frame(with_maps=with_maps)
    for name, value in counters.items():
        setattr(frame.reference.idx, name, value)
    return frame


def images(results, kind="image"):
    return [item.data for item in results if getattr(item, "kind", None) == kind]


def test_a_batch_that_does_not_fit_is_solved_in_halves(gpu):
    """As if they had been batches from the beginning."""
    opened, settings = session(header(), noise_known=False), {"steps": 3, "samples": 1}
    results = run([Singles(slices_per_batch=4, **settings)], [scanned(slice=n) for n in range(4)], opened)
    frames = [item for item in results if isinstance(item, Frame)]
    assert [frame.reference.idx.slice for frame in frames] == [0, 1, 2, 3]
    assert [item.frame for item in results if not isinstance(item, Frame)] == frames
    expected = run([DiffusionSolver(**settings)], [scanned(slice=n) for n in range(4)], opened)
    assert torch.equal(torch.stack(images(results)), torch.stack(images(expected)))
    assert opened.tell.about("GPU") == [
        "slice 0, contrast 0, repetition 0 and 3 more: Singles continues with half of them, "
        "since the GPU's memory did not suffice for 4 slices at once",
        "slice 0, contrast 0, repetition 0 and 1 more: Singles continues with half of them, "
        "since the GPU's memory did not suffice for 2 slices at once",
        "slice 2, contrast 0, repetition 0 and 1 more: Singles continues with half of them, "
        "since the GPU's memory did not suffice for 2 slices at once",
    ]
    for frame in frames:
        *halved, noise, _ = frame.history
        assert halved == [f"Singles: the GPU's memory did not suffice for {n} slices at once" for n in (4, 2)]
        assert "estimated from the samples" in noise


@pytest.mark.parametrize(("on_full_gpu", "plain"), [(Diffusion, DiffusionSolver), (Joint, JointSolver)])
def test_a_slice_that_does_not_fit_is_solved_on_the_cpu(gpu, on_full_gpu, plain):
    """As with the same seed there; of what was begun on the GPU nothing is left."""
    settings = {"steps": 3, "samples": 2, "slices_per_batch": 3}
    opened = session(header(), seed=5)
    results = run([on_full_gpu(**settings)], [scanned(plain is DiffusionSolver)], opened)
    expected = run([plain(**settings)], [scanned(plain is DiffusionSolver)], session(header(), seed=5))
    assert [getattr(item, "kind", "frame") for item in results] == [getattr(item, "kind", "frame") for item in expected]
    assert torch.equal(results[0].data, expected[0].data)
    assert results[0].frame.device == CPU
    (told,) = opened.tell.about("GPU")
    name = on_full_gpu.__name__
    assert (
        told
        == f"slice 0, contrast 0, repetition 0: {name} continues on the CPU, since the GPU's memory did not suffice"
    )
    first, *rest = results[-1].history
    assert first == f"{name}: on the CPU, since the GPU's memory did not suffice"
    assert len(rest) == len(expected[-1].history)


def test_the_frame_goes_back_to_the_gpu_for_the_gadgets_that_follow(gpu):
    gadget = CgSense(regularisation=0.01)
    gadget.open(session(header()))
    image, frame = taken_on_the_cpu(gadget, scanned())
    assert frame.device == GPU
    assert frame.history[0] == "CgSense: on the CPU, since the GPU's memory did not suffice"
    assert "regularisation 0.01" in frame.history[1]
    assert error(image.data, 20 * head()) < 0.15


def test_a_frame_moves_with_all_that_it_holds():
    frame = scanned()
    frame.calibration, frame.mixing = frame.samples, torch.eye(COILS)
    frame.field_map = frame.image = torch.zeros(48, 48)
    moved = frame.on(torch.device("meta"))
    samples = moved.samples, moved.calibration
    tensors = [moved.times, moved.mixing, moved.coil_maps, moved.field_map, moved.image]
    tensors += [tensor for some in samples for tensor in (some.kspace, some.trajectory)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.device.type == "meta"
    assert frame.device == CPU


def failing(error: Exception, after: int = 0):
    yield from range(after)
    raise error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError("one coil of one image needs 9 MiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    ],
)
def test_only_the_memory_of_a_gpu_is_given_another_chance(error):
    assert begun(failing(error), GPU) is None
    with pytest.raises(type(error)):
        begun(failing(error), CPU)
    with pytest.raises(type(error)):
        list(begun(failing(error, after=1), GPU))
    with pytest.raises(ZeroDivisionError):
        begun(failing(ZeroDivisionError()), GPU)


def test_items_pass_when_the_memory_suffices():
    assert list(begun(iter(range(3)), GPU)) == [0, 1, 2]
    assert list(begun(iter(()), GPU)) == []


def test_what_the_attempt_held_is_free_before_the_next(monkeypatch):
    held = []

    def attempt():
        large = torch.zeros(3)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")
        yield

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(held[0]()))
    begun(attempt(), GPU)
    assert held[1:] == [None]


def test_knows_what_pytorch_raises_on_the_cpu():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert out_of_memory(raised.value)
    assert not out_of_memory(RuntimeError("expected a tensor on the CPU"))


class FullFor(CgSense):
    """A gadget that knows nothing of memory, for which a GPU has none left."""

    def take(self, item):
        if item.device == GPU:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        yield from super().take(item)


def test_any_gadget_of_frames_continues_on_the_cpu(gpu):
    told = []
    gadget = FullFor(iterations=12)
    gadget.open(replace(session(header()), tell=told.append))
    *_, frame = taken(gadget, scanned())
    assert isinstance(frame, Frame)
    assert frame.image is not None
    assert told == [f"{frame.label}: FullFor continues on the CPU, since the GPU's memory did not suffice"]
    assert sum("on the CPU" in line for line in frame.history) == 1


@pytest.fixture
def full_gpu(monkeypatch) -> None:
    """Frames begin on the CPU, and no memory is left where they shall go."""

    def on(frame: Frame, device: torch.device, on=Frame.on) -> Frame:
        if device.type == "cuda":
            raise RuntimeError("CUDA error: out of memory")
        return on(frame, device)

    monkeypatch.setattr(Frame, "on", on)


def test_a_frame_that_cannot_move_to_the_gpu_is_reconstructed_on_the_cpu(full_gpu):
    opened = session(header(), device=GPU)
    gadgets = [Trajectory(), FrameAssembly(), FieldMap(), CoilMaps(), CgSense(iterations=3), ImageExport()]
    images = list(Chain(gadgets, opened).run(line(step) for step in range(8)))
    assert [image.data.any() for image in images] == [True]
    where = "slice 0, contrast 0, repetition 0"
    assert opened.tell.about("CPU") == [
        f"{where}: {what} on the CPU, since the GPU's memory did not suffice"
        for what in ("stays", "CoilMaps continues", "CgSense continues")
    ]
    assert "FrameAssembly: on the CPU, since the GPU's memory did not suffice" in images[0].attribute_string


class Holds(CgSense):
    """Holds frames, as those do that solve several at once."""

    def open(self, session):
        super().open(session)
        self.held = []

    def take(self, item):
        self.held.append(item)
        return iter(())

    def finish(self):
        held, self.held = self.held, []
        return iter(held)


def test_frames_that_did_not_fit_overtake_none(monkeypatch):
    gadget = Holds()
    gadget.open(session(header(), device=GPU))
    monkeypatch.setattr(Frame, "device", property(lambda frame: CPU if frame.reference.idx.slice == 2 else GPU))
    frames = [scanned(slice=number) for number in range(4)]
    came = [item.reference.idx.slice for frame in frames for item in taken(gadget, frame)]
    assert came == [0, 1, 2]
    assert [item.reference.idx.slice for item in gadget.finish()] == [3]


def test_other_failures_of_a_move_are_told_as_they_are(monkeypatch):
    monkeypatch.setattr(Frame, "on", lambda frame, device: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        moved(scanned(), CgSense(), GPU)


def test_on_the_cpu_a_session_leaves_the_device_to_others(gpu):
    busy = []

    @contextmanager
    def without_turn():
        busy.append(True)
        yield
        busy.append(False)

    class Looks(FullFor):
        def take(self, item):
            busy.append(item.device)
            yield from super().take(item)

    gadget = Looks(iterations=3)
    gadget.open(replace(session(header()), without_turn=without_turn))
    list(taken(gadget, scanned()))
    assert busy == [GPU, True, CPU, False]


class Broken(CgSense):
    def take(self, item):
        raise ValueError("no such thing")
        yield


def test_other_failures_of_a_gadget_are_its_own(gpu):
    with pytest.raises(ValueError, match="no such thing"):
        list(taken(Broken(), scanned()))
