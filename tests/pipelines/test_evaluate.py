import json
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser

import h5py
import ismrmrd
import nibabel
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import ndimage

from gadgets.frame import Frame, SeriesImage
from gadgets.gadget import IMAGE, Gadget
from pipelines.cli import main
from pipelines.definition import DEFINITIONS
from pipelines.evaluate import Evaluation, compare, evaluate
from pipelines.evaluation_report import interesting_window, report_folder, write_report
from pipelines.image_series import images_of_main_series, solver_report
from pipelines.registry import installed_gadgets
from pipelines.session import Site
from pipelines.simulate import SimulationSettings, simulate
from pipelines.truth import brought_truth, own_truth

from image_items import mrd_image

SIZE = 48
BROKEN = "no <i>such gadget & $x$.xml"
SCAN = {"trajectory": "cartesian", "matrix": (SIZE, SIZE), "coils": 4, "acceleration": 2, "noise": 0.02, "seed": 3}


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A scan, a pipeline that cannot run, what `replay` makes of the scan, and its evaluation in `out`."""
    folder = tmp_path_factory.mktemp("evaluate")
    simulate(folder / "raw.h5", SimulationSettings(**SCAN, slices=2))
    (folder / BROKEN).write_text((DEFINITIONS / "preview.xml").read_text().replace("CoilMaps", "CoilMap"))
    stored = ["--set", "ImageExport.data_type=float32", "-o", folder / "images.h5", "--nifti", folder / "nifti"]
    assert run("replay", folder / "raw.h5", "-p", "cg_sense", "--device", "cpu", *stored)[0] == 0
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A scan of one slice."""
    path = tmp_path_factory.mktemp("single") / "raw.h5"
    simulate(path, SimulationSettings(**SCAN))
    return path


@pytest.fixture(scope="module")
def evaluated(folder):
    pipelines = f"preview,cg_sense.xml,{folder / BROKEN}"
    status, output = run("evaluate", folder / "raw.h5", "--pipelines", pipelines, "-o", folder / "out")
    metrics = json.loads((folder / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    return status, output, metrics, (folder / "out" / "index.html").read_text(encoding="utf-8")


def truth_of(raw) -> np.ndarray:
    """Of unit-norm maps after prewhitening: |image| |L^-1 s| with the noise covariance L L^H."""
    with h5py.File(raw) as file:
        image, maps, covariance = (file[f"truth/{name}"][()] for name in ("image", "coil_maps", "noise_covariance"))
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), maps.reshape(len(maps), len(covariance), -1))
    return np.abs(image) * np.linalg.norm(whitened, axis=1).reshape(image.shape)


def images_of(path) -> np.ndarray:
    with h5py.File(path) as file:
        order = np.argsort(file["dataset/image_1/header"]["slice"])
        return file["dataset/image_1/data"][()][order, 0, 0].astype(float)


def ssim_of(image: np.ndarray, reference: np.ndarray) -> float:
    """By the definition of Wang et al., with sums over windows of 7 x 7 pixels."""

    def mean(x):
        return ndimage.uniform_filter(x, 7)[3:-3, 3:-3]

    unbiased = 49 / 48
    c1, c2 = (0.01 * reference.max()) ** 2, (0.03 * reference.max()) ** 2
    a, b = mean(image), mean(reference)
    variances = unbiased * (mean(image**2) - a**2 + mean(reference**2) - b**2)
    covariance = unbiased * (mean(image * reference) - a * b)
    return np.mean((2 * a * b + c1) * (2 * covariance + c2) / ((a**2 + b**2 + c1) * (variances + c2)))


def test_the_figures_are_those_of_the_definitions(folder, evaluated):
    truth, images = truth_of(folder / "raw.h5"), images_of(folder / "images.h5")
    found = evaluated[2]["cg_sense.xml"]
    assert [entry["slice"] for entry in found["slices"]] == [0, 1]
    for entry, image, reference in zip(found["slices"], images, truth, strict=True):
        error = image - reference
        psnr = 10 * np.log10(reference.max() ** 2 / np.mean(error**2))
        # Pixels leave as whole numbers, with about a thousand of them up to the brightest.
        assert entry["psnr"] == pytest.approx(psnr, abs=0.02)
        assert entry["nmse"] == pytest.approx(np.sum(error**2) / np.sum(reference**2), rel=5e-3)
        assert entry["ssim"] == pytest.approx(ssim_of(image, reference), abs=2e-3)
    for name in ("psnr", "ssim", "nmse", "seconds", "steps"):
        values = [entry[name] for entry in found["slices"]]
        assert found[name] == pytest.approx(np.mean(values))
        assert found["spread"][name] == pytest.approx(np.std(values, ddof=1))


def test_cg_sense_is_better_than_the_preview_and_tells_its_steps(evaluated):
    _, output, metrics, _ = evaluated
    preview, cg_sense = metrics["preview"], metrics["cg_sense.xml"]
    assert cg_sense["psnr"] > preview["psnr"] + 3
    assert cg_sense["nmse"] < 0.5 * preview["nmse"]
    assert 1 < cg_sense["steps"] <= 20
    assert preview["steps"] is None
    assert preview["solver_seconds"] is None
    assert f"PSNR / dB {cg_sense['psnr']:.2f}" in output


def test_every_entry_has_the_same_names(evaluated):
    metrics = evaluated[2]
    measured = {"psnr", "ssim", "nmse", "seconds", "steps", "solver_seconds"}
    for name in ("preview", "cg_sense.xml"):
        entry = metrics[name]
        assert set(entry) == measured | {"scale", "spread", "slices", "notes"}
        assert entry["notes"] == []
        assert set(entry["spread"]) == measured
        assert all(set(each) == measured | {"slice"} for each in entry["slices"])
        assert entry["scale"] == 1
        assert all(0 < each["seconds"] < 60 for each in entry["slices"])


def test_a_pipeline_that_fails_does_not_keep_the_others(folder, evaluated):
    status, output, metrics, page = evaluated
    broken = str(folder / BROKEN)
    assert status == 1
    assert f"1 of 3 pipelines failed: {broken}" in output
    assert set(metrics) == {"preview", "cg_sense.xml", broken}
    assert set(metrics[broken]) == {"error"}
    assert "no gadget is called 'CoilMap'" in metrics[broken]["error"]
    assert "no gadget is called &#x27;CoilMap&#x27;" in page


class Reader(HTMLParser):
    """Collects tags, the files that are named, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags, self.files, self.text = set(), set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.files |= {value for key, value in attrs if key in ("src", "href")}

    def handle_data(self, data):
        self.text += data


def test_the_page_tells_of_each_pipeline_and_needs_only_files_beside_it(folder, evaluated):
    reader = Reader()
    reader.feed(evaluated[3])
    for name in ("preview", "cg_sense.xml", BROKEN):
        assert name in reader.text
    assert not reader.tags & {"i", "script", "link", "iframe"}
    assert reader.files == {"curves.png", "slice_000.png", "slice_001.png"}
    assert all((folder / "out" / name).read_bytes().startswith(b"\x89PNG") for name in reader.files)


def test_names_with_dollars_are_drawn_as_they_are(single, tmp_path):
    shutil.copy(DEFINITIONS / "preview.xml", tmp_path / "a $\\bad{$ <i>.xml")
    status, output = run("evaluate", single, "-p", tmp_path / "a $\\bad{$ <i>.xml", "-o", tmp_path / "out")
    assert status == 0, output
    reader = Reader()
    reader.feed((tmp_path / "out" / "index.html").read_text())
    assert "i" not in reader.tags


def test_an_existing_page_is_replaced_only_if_asked(single, tmp_path):
    command = ["evaluate", single, "-o", tmp_path, "-p"]
    assert run(*command, "preview")[0] == 0
    before = (tmp_path / "index.html").read_text()
    status, output = run(*command, "cg_sense")
    assert (status, "they are not overwritten" in output) == (1, True)
    assert (tmp_path / "index.html").read_text() == before
    assert run(*command, "cg_sense", "--overwrite")[0] == 0
    assert set(json.loads((tmp_path / "metrics.json").read_text())) == {"cg_sense"}
    assert "preview" not in (tmp_path / "index.html").read_text()


def nifti_of(folder):
    return next((folder / "nifti").glob("series001*.nii.gz"))


def test_a_truth_in_nifti_is_found_by_its_geometry(folder, tmp_path):
    """nibabel turns the volume around: other axes first, and from the other end."""
    image = nibabel.load(nifti_of(folder))
    turned = tmp_path / "turned.nii.gz"
    nibabel.save(image.as_reoriented([[1, -1], [2, 1], [0, -1]]), turned)
    for truth in (nifti_of(folder), turned, folder / "images.h5"):
        metrics = with_truth(folder, tmp_path / "out" / truth.name, truth, "ImageExport.data_type=float32")
        assert metrics["cg_sense"]["nmse"] < 1e-9, truth
        assert metrics["cg_sense"]["scale"] == pytest.approx(1, rel=1e-5)


def with_truth(folder, output, truth, setting, *options) -> dict:
    options = ("--truth", truth, "-o", output, "--set", setting, *options)
    status, told = run("evaluate", folder / "raw.h5", "-p", "cg_sense", *options)
    assert status == 0, told
    return json.loads((output / "metrics.json").read_text())


def test_one_factor_brings_the_images_to_the_scale_of_a_truth_that_is_brought(folder, tmp_path):
    truth, images = truth_of(folder / "raw.h5"), images_of(folder / "images.h5")
    np.savez(tmp_path / "truth.npz", picture=7 * truth * np.exp(0.3j), other=np.zeros(3))
    key = ("--key", "picture")
    found = with_truth(folder, tmp_path / "out", tmp_path / "truth.npz", "ImageExport.data_type=float32", *key)
    factor = np.sum(7 * truth * images) / np.sum(images**2)
    assert found["cg_sense"]["scale"] == pytest.approx(factor, rel=1e-5)
    error = factor * images - 7 * truth
    nmse = np.sum(error**2, axis=(1, 2)) / np.sum((7 * truth) ** 2, axis=(1, 2))
    assert [entry["nmse"] for entry in found["cg_sense"]["slices"]] == pytest.approx(nmse, rel=1e-4)
    assert "one real factor per pipeline" in (tmp_path / "out" / "index.html").read_text()


def test_without_noise_the_image_is_the_truth(tmp_path):
    simulate(tmp_path / "raw.h5", SimulationSettings(**{**SCAN, "noise": 0.0, "acceleration": 1}))
    assert run("evaluate", tmp_path / "raw.h5", "-p", "cg_sense", "-o", tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["cg_sense"]["nmse"] < 1e-3


def test_each_image_of_several_repetitions_counts(tmp_path):
    simulate(tmp_path / "raw.h5", SimulationSettings(**SCAN, repetitions=2))
    assert run("evaluate", tmp_path / "raw.h5", "-p", "preview", "-o", tmp_path / "out")[0] == 0
    slices = json.loads((tmp_path / "out" / "metrics.json").read_text())["preview"]["slices"]
    assert [(entry["slice"], entry.get("repetition", 0)) for entry in slices] == [(0, 0), (0, 1)]
    assert slices[0]["psnr"] != slices[1]["psnr"]
    assert "slice 0, repetition 1" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize("shape", [(2, 40, 48), (1, 48, 48), (3, 48, 48)])
def test_a_truth_of_another_shape_is_refused_before_any_pipeline_is_run(folder, tmp_path, shape):
    np.savez(tmp_path / "truth.npz", np.ones(shape))
    arguments = ["-p", "preview", "-o", tmp_path / "out", "--truth", tmp_path / "truth.npz"]
    status, output = run("evaluate", folder / "raw.h5", *arguments)
    assert status == 1
    message = (
        "truth.npz does not fit raw.h5: expected [slice, y, x] = [2, 48, 48], which is what the raw data give, got "
    )
    assert message + str(list(shape)) in output
    assert "preview: " not in output
    assert not (tmp_path / "out" / "index.html").exists()


def test_a_pipeline_that_keeps_a_slice_to_itself_is_reported(folder):
    outcome = run_here(folder, '<gadget name="CoilCompression"/>', '<gadget name="FirstSlice"/>')
    assert outcome.error == "expected the 2 slices of the truth, got slices 0, counted from 0"


def test_a_truth_that_lies_elsewhere_is_refused(folder, tmp_path):
    image = nibabel.load(nifti_of(folder))
    affine = image.affine.copy()
    affine[:3, 3] += 0.3 * affine[:3, 0]
    nibabel.save(nibabel.Nifti1Image(image.get_fdata(), affine), tmp_path / "moved.nii.gz")
    arguments = ["-p", "preview", "-o", tmp_path / "out", "--truth", tmp_path / "moved.nii.gz"]
    status, output = run("evaluate", folder / "raw.h5", *arguments)
    assert (status, "got volumes [2, 48, 48] on another grid or elsewhere" in output) == (1, True), output
    assert "moved.nii.gz does not fit raw.h5" in output
    assert "preview: " not in output


def test_a_file_without_truth_names_the_option(folder, tmp_path):
    shutil.copy(folder / "raw.h5", tmp_path / "raw.h5")
    with h5py.File(tmp_path / "raw.h5", "a") as file:
        del file["truth"]
    status, output = run("evaluate", tmp_path / "raw.h5", "-p", "preview", "-o", tmp_path / "out")
    assert (status, "there is no group 'truth'" in output, "--truth" in output) == (1, True, True)
    assert not (tmp_path / "out").exists()


def test_an_unknown_pipeline_is_told_before_any_is_run(folder, tmp_path):
    status, output = run("evaluate", folder / "raw.h5", "-p", "preview,cgsense", "-o", tmp_path / "out")
    assert (status, "did you mean 'cg_sense'?" in output, "PSNR" in output) == (1, True, False), output
    assert not (tmp_path / "out" / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-p", "preview,preview"], 2, "expected different names"),
        (["-p", "preview,"], 2, "expected different names"),
        (["-p", "preview", "--key", "x"], 2, "--key is for --truth"),
        (["-p", "preview", "--zoom", "1,2"], 2, "as Y,X,SIZE, got '1,2'"),
        (["-p", "preview", "--zoom", "40,0,9"], 1, "[48, 48], got 9 x 9 pixels from row 40 and column 0"),
        (["-p", "preview", "--set", "CgSense.iterations=3"], 1, "a gadget of one of the pipelines"),
        (["-p", "preview,cg_sense", "--set", "CgSense.iterationz=3"], 1, "property; did you mean 'iterations'?"),
        (["-p", "preview,cg_sense", "--set", "CgSense.iterations=few"], 1, "CgSense.iterations: expected a whole"),
        (["-p", "previw"], 1, "did you mean 'preview'?"),
        (["-p", "preview", "--truth", "truth.txt"], 1, "truth.txt: expected a file that ends in .npz"),
        (["-p", "preview", "--truth", "two.npz"], 1, "expected one array, got a [2], b [3]; --key names the one"),
        (["-p", "preview", "--truth", "two.npz", "--key", "c"], 1, "expected an array c, got a [2], b [3]"),
        (["-p", "preview", "--truth", "two.npz", "--key", "a"], 1, "expected numbers [slice, y, x] or [y, x]"),
        (["-p", "preview", "--truth", "zero.npz"], 1, "zero.npz cannot be read: it holds nothing but zeros"),
        (["-p", "preview", "--truth", "broken.h5"], 1, "the truth broken.h5 cannot be read"),
    ],
)
def test_mistakes(folder, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    for name in ("truth.txt", "broken.h5"):
        (tmp_path / name).write_text("no")
    np.savez("two.npz", a=np.ones(2), b=np.ones(3))
    np.savez("zero.npz", np.zeros((2, SIZE, SIZE)))
    got, output = run("evaluate", folder / "raw.h5", "-o", "out", *arguments)
    assert (got, message in output) == (status, True), output
    assert "times:" not in output  # no pipeline was run


class Doubts(Gadget[Frame]):
    """Says of each image how far it may be off: the truth is within a tenth of it."""

    takes = Frame
    needs = frozenset({IMAGE})

    def take(self, item: Frame) -> Iterator[object]:
        yield SeriesImage("deviation", 0.1 * item.image.abs(), item)
        yield item


class Certain(Doubts):
    """Says of each image that it is hardly off."""

    def take(self, item: Frame) -> Iterator[object]:
        yield SeriesImage("deviation", 1e-6 * item.image.abs(), item)
        yield item


class FirstSlice(Gadget[Frame]):
    """Loses all other slices."""

    takes = Frame

    def take(self, item: Frame) -> Iterator[object]:
        if item.reference.idx.slice == 0:
            yield item


class Measures(Gadget[Frame]):
    """A field that is wrong by 10 Hz, and by 40 Hz where there is hardly any signal."""

    takes = Frame
    field_hz: np.ndarray
    magnitude: np.ndarray

    def take(self, item: Frame) -> Iterator[object]:
        number = item.reference.idx.slice
        wrong = np.where(self.magnitude[number] > FAINT, 10, 40)
        yield SeriesImage("field_map", torch.from_numpy(self.field_hz[number] + wrong), item)
        yield item


FAINT = 0.3
EXPORT = '<gadget name="ImageExport"/>'
OURS = {gadget.__name__: gadget for gadget in (Doubts, Certain, FirstSlice, Measures)}


def run_here(folder, text: str, replacement: str, truth=None, told=None, output=None):
    """The outcome of CG-SENSE with a change in its definition, and the page of it in `output`."""
    pipeline = folder / "changed.xml"
    pipeline.write_text((DEFINITIONS / "cg_sense.xml").read_text().replace(text, replacement))
    site = Site(device="cpu", registry={**installed_gadgets(), **OURS}, state_folder=folder)
    raw = folder / "raw.h5"
    job = Evaluation(raw=raw, pipelines=[str(pipeline)], truth=truth or own_truth(raw))
    outcomes = evaluate(job, site, (told if told is not None else []).append, lambda items, total: items)
    if output is not None:
        write_report(report_folder(output, overwrite=False), job, outcomes)
    return outcomes[str(pipeline)]


def test_a_deviation_is_held_against_the_error(folder):
    outcome = run_here(folder, EXPORT, f'<gadget name="Doubts"/>{EXPORT}')
    assert outcome.error is None
    for plane in outcome.planes:
        np.testing.assert_allclose(plane.deviation, 0.1 * plane.image, atol=1e-3 * plane.image.max())
        assert plane.figures["coverage"] > 0.9
        assert -1 <= plane.figures["correlation"] <= 1
    assert set(outcome.mean) >= {"coverage", "correlation"}
    assert outcome.notes == ()


def test_a_deviation_that_is_too_small_is_warned_of(folder, tmp_path):
    told = []
    outcome = run_here(folder, EXPORT, f'<gadget name="Certain"/>{EXPORT}', told=told, output=tmp_path)
    (note,) = outcome.notes
    assert "the 90 % interval covers 0% of the truth only" in note
    assert "the prior does not suit these images" in note
    assert any(text.endswith(note) for text in told)
    assert note in (tmp_path / "index.html").read_text()
    (entry,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    assert entry["notes"] == [note]


def test_a_slice_whose_truth_is_zero_is_left_out_and_named(folder, tmp_path):
    truth = truth_of(folder / "raw.h5")
    truth[1] = 0
    np.savez(tmp_path / "truth.npz", truth)
    told = []
    brought = brought_truth(tmp_path / "truth.npz")
    outcome = run_here(folder, "uint16", "float32", brought, told, tmp_path / "out")
    assert [plane.label for plane in outcome.planes] == ["slice 0"]
    assert outcome.notes == ("left out, since the truth is zero there: slice 1",)
    assert any(text.endswith(outcome.notes[0]) for text in told)
    image = images_of(folder / "images.h5")[0]
    assert outcome.scale == pytest.approx(np.sum(truth[0] * image) / np.sum(image**2), rel=2e-3)
    assert outcome.mean["psnr"] == outcome.planes[0].figures["psnr"] > 20
    (entry,) = json.loads((tmp_path / "out" / "metrics.json").read_text()).values()
    assert entry["notes"] == list(outcome.notes)
    assert outcome.notes[0] in (tmp_path / "out" / "index.html").read_text()


def test_pictures_are_named_by_their_slice_even_if_one_before_it_is_left_out(folder, tmp_path):
    truth = truth_of(folder / "raw.h5")
    truth[0] = 0
    np.savez(tmp_path / "truth.npz", truth)
    with_truth(folder, tmp_path / "out", tmp_path / "truth.npz", "ImageExport.data_type=float32")
    assert [file.name for file in (tmp_path / "out").glob("*.png")] == ["slice_001.png"]


def test_an_empty_slice_of_a_truth_in_mrd_is_left_out(folder, tmp_path):
    shutil.copy(folder / "images.h5", tmp_path / "truth.h5")
    with h5py.File(tmp_path / "truth.h5", "a") as file:
        empty = int(np.argmax(file["dataset/image_1/header"]["slice"]))
        file["dataset/image_1/data"][empty] = 0
    metrics = with_truth(folder, tmp_path / "out", tmp_path / "truth.h5", "ImageExport.data_type=float32")
    assert [entry["slice"] for entry in metrics["cg_sense"]["slices"]] == [0]
    assert metrics["cg_sense"]["nmse"] < 1e-9


def test_a_field_map_is_held_against_the_true_field_within_the_object(folder, tmp_path):
    with h5py.File(folder / "raw.h5") as file:
        field, mask, image = (file[f"truth/{name}"][()] for name in ("field_map_hz", "mask", "image"))
    Measures.field_hz, Measures.magnitude = field, np.abs(image)
    outcome = run_here(folder, EXPORT, f'<gadget name="Measures"/>{EXPORT}', output=tmp_path)
    assert outcome.error is None
    for plane, inside, magnitude, shaded in zip(
        outcome.planes, mask, np.abs(image), truth_of(folder / "raw.h5"), strict=True
    ):
        squared = np.where(magnitude > FAINT, 10.0, 40.0)[inside] ** 2
        assert plane.figures["field_rmse_hz"] == pytest.approx(np.sqrt(squared.mean()), rel=1e-5)
        weighted = np.sqrt(np.sum(shaded[inside] * squared) / np.sum(shaded[inside]))
        assert plane.figures["field_rmse_hz_weighted"] == pytest.approx(weighted, rel=1e-4)
        assert weighted < 0.9 * np.sqrt(squared.mean())
    (entry,) = json.loads((tmp_path / "metrics.json").read_text()).values()
    both = [each["field_rmse_hz"] for each in entry["slices"]]
    assert entry["field_rmse_hz"] == pytest.approx(np.mean(both))
    assert "field error / Hz" in (tmp_path / "index.html").read_text()


def test_the_field_of_two_echoes_is_the_true_one_with_its_sign(tmp_path):
    """The second echo is another simulated scan, of the image that has precessed since the first."""
    settings = SCAN | {"acceleration": 1, "noise": 0.005}
    simulate(tmp_path / "first.h5", SimulationSettings(**settings, b0="40"))
    with h5py.File(tmp_path / "first.h5") as file:
        image, field = file["truth/image"][()], file["truth/field_map_hz"][()]
    later = 4e-3
    np.savez(tmp_path / "later.npz", image=image * np.exp(-2j * np.pi * field * later), field_map_hz=field)
    source = str(tmp_path / "later.npz")
    simulate(tmp_path / "second.h5", SimulationSettings(**settings, b0=source, image=source))
    join_echoes(tmp_path / "first.h5", tmp_path / "second.h5", later * 1e3)
    status, output = run("evaluate", tmp_path / "first.h5", "-p", "field_map", "-o", tmp_path / "out")
    assert status == 0, output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["field_map"]
    assert metrics["field_rmse_hz"] < 1.5
    assert metrics["field_rmse_hz_weighted"] < 1.5
    assert np.sqrt(np.mean(field[np.abs(image) > FAINT] ** 2)) > 15
    assert "field_rmse_hz" not in metrics["slices"][1]
    assert f"field error / Hz {metrics['field_rmse_hz']:.2f}" in output


def join_echoes(first, second, later_ms: float) -> None:
    """Appends the imaging readouts of one scan to another as its second contrast."""
    source = ismrmrd.Dataset(str(second), "dataset", False)
    target = ismrmrd.Dataset(str(first), "dataset", False)
    for number in range(source.number_of_acquisitions()):
        item = source.read_acquisition(number)
        if not item.isFlagSet(ismrmrd.ACQ_IS_NOISE_MEASUREMENT):
            item.idx.contrast = 1
            target.append_acquisition(item)
    xml = target.read_xml_header().decode()
    time = float(xml.partition("<TE>")[2].partition("</TE>")[0])
    target.write_xml_header(xml.replace("</TE>", f"</TE><TE>{time + later_ms}</TE>").encode())
    source.close()
    target.close()


def test_a_gaussian_error_is_covered_as_promised_and_correlates_with_its_deviation():
    rng = np.random.default_rng(0)
    deviation = rng.uniform(0.5, 3.0, (400, 400))
    noise = deviation * (rng.standard_normal((400, 400)) + 1j * rng.standard_normal((400, 400))) / np.sqrt(2)
    reference = np.full((400, 400), 1e3)
    image = np.abs(reference + noise)
    figures = compare(*(x.astype(np.float32) for x in (image, reference, deviation)))
    assert figures["coverage"] == pytest.approx(0.9, abs=0.003)
    assert figures["correlation"] == pytest.approx(np.corrcoef(np.abs(noise.real).flat, deviation.flat)[0, 1], abs=1e-2)


def test_a_noisy_truth_needs_prewhitening(folder):
    outcome = run_here(folder, '<gadget name="NoisePrewhitening"/>', "")
    assert "expected NoisePrewhitening, on whose scale the truth of raw.h5 is" in outcome.error


def test_a_noisy_truth_needs_noise_data_to_prewhiten_by(folder, single, tmp_path):
    stripped = tmp_path / "stripped.h5"
    shutil.copy(single, stripped)
    with h5py.File(stripped, "a") as file:
        readouts = file["dataset/data"][()]
        del file["dataset/data"]
        is_noise = readouts["head"]["flags"] & (1 << (ismrmrd.ACQ_IS_NOISE_MEASUREMENT - 1)) > 0
        assert is_noise.any()
        file["dataset/data"] = readouts[~is_noise]
    status, output = run("evaluate", stripped, "-p", "cg_sense", "--device", "cpu", "-o", tmp_path / "own")
    assert status == 1
    assert "cg_sense failed: the truth of stripped.h5 is on the scale after prewhitening, but no noise data" in output
    assert "expected a noise scan in stripped.h5; --truth FILE brings a truth" in output
    brought = ["--truth", single, "-o", tmp_path / "brought"]
    assert run("evaluate", stripped, "-p", "cg_sense", "--device", "cpu", *brought)[0] == 0


def test_a_slice_without_data_is_no_fault_of_the_deviation(folder, tmp_path):
    """Nor does it hide one: of the other slices it is told all the same."""
    half = tmp_path / "raw.h5"
    shutil.copy(folder / "raw.h5", half)
    with h5py.File(half, "a") as file:
        readouts = file["dataset/data"][()]
        for readout in readouts:
            readout["data"][:] *= readout["head"]["idx"]["slice"] != 1
        file["dataset/data"][...] = readouts
    outcome = run_here(tmp_path, EXPORT, f'<gadget name="Doubts"/>{EXPORT}')
    with_data, without = outcome.planes
    assert with_data.image.any() and not without.image.any()
    assert without.figures["coverage"] < 0.1
    assert outcome.notes == ()


def test_a_property_is_set_where_the_gadget_is(single, tmp_path):
    arguments = ["-p", "preview,cg_sense", "--set", "CgSense.iterations=2", "-o", tmp_path]
    assert run("evaluate", single, *arguments)[0] == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["cg_sense"]["steps"] == 2


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        (["CgSense: 20 iterations, residual 1e-3"], (20, None)),
        (
            ["CgSense: 20 iterations", "DiffusionSolver: 12 of 15 steps in 1.50 s, unit 2", "seed 0"],
            (12, 1.5),
        ),
        (["DiffusionSolver: 15 of 15 steps in 4.0 s, 8 slices at once"], (15, 0.5)),
        (["Trajectory: computed", "seed 3"], (None, None)),
        ([], (None, None)),
    ],
)
def test_steps_and_seconds_of_the_solver_stand_in_the_history(history, expected):
    assert solver_report(mrd_image(np.ones((4, 4)), meta={"ImageProcessingHistory": history})) == expected


def test_pipelines_are_judged_by_their_best_series():
    def image(kind: str, role: str = "Image") -> ismrmrd.Image:
        return mrd_image(np.ones((4, 4)), meta={"SequenceDescriptionAdditional": kind, "DataRole": role})

    final, preview, squared = image("image"), image("preview"), image("squared")
    doubt = image("deviation", "Quantitative")
    assert images_of_main_series([preview, squared, final, doubt]) == [final]
    assert images_of_main_series([doubt, preview]) == [preview]
    with pytest.raises(ValueError, match="got preview, squared"):
        images_of_main_series([preview, squared])
    with pytest.raises(ValueError, match="got none"):
        images_of_main_series([doubt])


def test_the_window_lies_where_the_pipelines_differ():
    reference = np.ones((40, 60), np.float32)
    other = reference.copy()
    other[22:30, 41:49] = 2
    top, left, edge = interesting_window([reference, other], reference)
    assert edge == 10
    assert top <= 22
    assert top + edge >= 30
    assert left <= 41
    assert left + edge >= 49
    assert interesting_window([other], reference) == (top, left, edge)
