"""Images on their way out: grid, pixels, geometry, series and meta."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest
import torch

from gadgets import image_export
from gadgets.frame import Frame, Samples, SeriesImage, Space
from gadgets.gadget import Session
from gadgets.image_export import ImageExport, Series
from pipelines.sinks.geometry import affine_lps

from image_items import HEADER, OBLIQUE

SPACE = Space((1, 8, 16), (5.0, 160.0, 320.0), (1, 8, 8), (5.0, 160.0, 160.0))
POSITION = (10.0, -20.0, 35.0)


def reference() -> ismrmrd.AcquisitionHeader:
    head = ismrmrd.AcquisitionHeader()
    head.measurement_uid, head.acquisition_time_stamp = 77, 123456
    head.physiology_time_stamp = (1, 2, 3)
    head.user_int, head.user_float = tuple(range(8)), tuple(x / 2 for x in range(8))
    head.position, head.patient_table_position = POSITION, (0.0, 0.0, -1200.0)
    head.read_dir, head.phase_dir, head.slice_dir = (tuple(axis) for axis in OBLIQUE.T)
    for number, counter in enumerate(("average", "slice", "contrast", "phase", "repetition", "set"), start=1):
        setattr(head.idx, counter, number)
    return head


def series_image(data, space=SPACE, kind="image", history=()) -> SeriesImage:
    samples = Samples(torch.zeros(1, 1, 1, dtype=torch.complex64), torch.zeros(2, 1, 1))
    frame = Frame(samples, torch.zeros(1, 1), space, reference(), history=["whitened"])
    return SeriesImage(kind, torch.as_tensor(data), frame, history)


def noise(seed=0, space=SPACE) -> torch.Tensor:
    return torch.randn(space.shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def opened(told=None, **properties) -> ImageExport:
    gadget = ImageExport(**properties)
    gadget.open(Session(HEADER, seed=3, tell=(told if told is not None else []).append))
    return gadget


def export(gadget, item) -> ismrmrd.Image:
    (image,) = gadget.take(item)
    image.attribute_string = image.attribute_string  # as a client gets it: through XML
    return image


def pixels(image):
    return image.data[0] * (1 / float(image.meta["ImageScaleFactor"]))


# The grid.


def test_oversampling_is_cropped_about_the_centre():
    data = noise()
    image = export(opened(data_type="complex64"), series_image(data))
    np.testing.assert_allclose(image.data[0, 0], data[:, 4:12], atol=1e-6)
    assert tuple(image.getHead().matrix_size) == (8, 8, 1)
    assert tuple(image.field_of_view) == (160, 160, 5)


def test_finer_recon_grid_is_zero_filled_kspace():
    space = Space((1, 6, 8), (5.0, 120.0, 160.0), (1, 12, 10), (5.0, 120.0, 160.0))
    data = noise(space=space)
    centred = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(data.numpy())))
    filled = np.pad(centred, ((3, 3), (1, 1))) * (12 * 10) / (6 * 8)
    expected = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(filled)))
    image = export(opened(data_type="complex64"), series_image(data, space))
    np.testing.assert_allclose(image.data[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "space",
    [
        Space((1, 64, 128), (5.0, 240.0, 480.0), (1, 64, 64), (5.0, 240.0, 240.0)),
        Space((1, 48, 96), (4.0, 200.0, 400.0), (1, 61, 77), (4.0, 171.3, 233.1)),
        Space((24, 33, 40), (96.0, 132.0, 160.0), (20, 40, 37), (80.0, 120.0, 148.0)),
    ],
    ids=["oversampled", "fractional", "volume"],
)
def test_a_blob_stays_where_it_is_in_the_patient(space):
    """A Gaussian at a place given in mm along the axes from the centre: its centre of mass in world coordinates."""
    offset_mm = np.array([12.0, -21.0, 30.0])  # z, y, x
    if space.encoded_matrix[0] == 1:
        offset_mm[0] = 0
    grids = [
        (np.arange(n) - n // 2) * fov / n for n, fov in zip(space.encoded_matrix, space.encoded_fov_mm, strict=True)
    ]
    z, y, x = np.meshgrid(*grids, indexing="ij")
    blob = np.exp(-((z - offset_mm[0]) ** 2 + (y - offset_mm[1]) ** 2 + (x - offset_mm[2]) ** 2) / (2 * 6.0**2))
    image = export(opened(data_type="float32"), series_image(blob.reshape(space.shape).astype(np.complex64), space))
    weights = image.data[0]
    index = np.array([(weights * g).sum() / weights.sum() for g in np.indices(weights.shape)])[::-1]
    expected = np.array(POSITION) + OBLIQUE @ offset_mm[::-1]
    np.testing.assert_allclose((affine_lps(image.getHead()) @ [*index, 1])[:3], expected, atol=0.05)
    assert weights.max() == pytest.approx(1, abs=0.06)  # values are kept, up to where the pixels fall


# Pixels.


def test_pixels_are_12_bit_and_give_the_physical_scale_back():
    image = export(opened(), series_image(noise()))
    assert image.data.dtype == np.uint16
    assert image.image_type == ismrmrd.IMTYPE_MAGNITUDE
    assert 4095 / 4 * 0.9 < image.data.max() <= 4095 / 4 * 1.1
    half_step = 0.5 / float(image.meta["ImageScaleFactor"])
    np.testing.assert_allclose(pixels(image)[0], noise()[:, 4:12].abs(), atol=half_step * 1.001)


def test_scale_holds_for_the_whole_series_and_not_for_others():
    gadget = opened()
    first, brighter = export(gadget, series_image(noise())), export(gadget, series_image(2 * noise()))
    preview = export(gadget, series_image(100 * noise(), kind="preview"))
    assert first.meta["ImageScaleFactor"] == brighter.meta["ImageScaleFactor"] != preview.meta["ImageScaleFactor"]
    assert (first.meta["WindowCenter"], first.meta["WindowWidth"]) == (
        brighter.meta["WindowCenter"],
        brighter.meta["WindowWidth"],
    )
    np.testing.assert_allclose(brighter.data.astype(int), 2 * first.data.astype(int), atol=2)


def test_clipping_is_told_once():
    told = []
    gadget = opened(told, headroom=2.0, bits=10)
    export(gadget, series_image(noise()))
    assert not told
    image = export(gadget, series_image(5 * noise()))
    export(gadget, series_image(5 * noise()))
    assert image.data.max() == 1023
    assert len(told) == 1
    assert "slice 2" in told[0]
    assert f"{(image.data == 1023).sum()} pixels" in told[0]


def test_an_empty_first_image_does_not_fix_the_scale():
    gadget = opened()
    assert not export(gadget, series_image(torch.zeros_like(noise()))).data.any()
    assert export(gadget, series_image(1e-3 * noise())).data.max() > 900


@pytest.mark.parametrize("data_type", ["float32", "complex64"])
def test_floating_pixels_keep_the_physical_scale(data_type):
    space = Space((1, 8, 16), (5.0, 160.0, 320.0), (1, 8, 16), (5.0, 160.0, 320.0))
    image = export(opened(data_type=data_type), series_image(noise(), space))
    assert image.data.dtype == data_type
    np.testing.assert_array_equal(image.data[0, 0], noise().abs() if data_type == "float32" else noise())
    assert float(image.meta["ImageScaleFactor"]) == 1
    assert image.image_type == {"float32": ismrmrd.IMTYPE_MAGNITUDE, "complex64": ismrmrd.IMTYPE_COMPLEX}[data_type]


def test_a_quantitative_series_is_one_line_in_the_table(monkeypatch):
    monkeypatch.setitem(image_export.SERIES, "map", Series(9, "map", "in Hz", role="Quantitative"))
    data = -20 * noise().real
    space = Space((1, 8, 16), (5.0, 160.0, 320.0), (1, 8, 16), (5.0, 160.0, 320.0))
    image = export(opened(), series_image(data, space, kind="map"))
    assert image.data.dtype == np.float32
    np.testing.assert_array_equal(image.data[0, 0], data)
    assert (image.meta["DataRole"], image.image_series_index) == ("Quantitative", 9)
    low = float(image.meta["WindowCenter"]) - float(image.meta["WindowWidth"]) / 2
    assert low == pytest.approx(float(data.min()), rel=0.05)


def test_coil_maps_are_a_series_of_their_own_with_one_scale():
    """How strong a coil is beside the others is all that maps say."""
    gadget = opened()
    first, second = (export(gadget, series_image(part * noise(), kind="coil_maps")) for part in (0.8, 0.6))
    assert [(image.image_series_index, image.image_index) for image in (first, second)] == [(5, 1), (5, 2)]
    assert first.meta["SeriesDescription"] == "spiral_coil maps"
    assert "sensitivities" in first.meta["ImageComments"]
    np.testing.assert_allclose(pixels(second) / 0.6, pixels(first) / 0.8, atol=0.01)


def test_a_map_that_is_not_periodic_does_not_ring():
    """A ramp comes to the finer and smaller recon grid as itself, with the voxel N // 2 in its place."""
    space = Space((1, 8, 16), (5.0, 160.0, 320.0), (1, 12, 21), (5.0, 120.0, 210.0))

    def ramp(ny, nx, step):
        y, x = torch.meshgrid(torch.arange(ny) - ny // 2, torch.arange(nx) - nx // 2, indexing="ij")
        return step * (3.0 * x - 7.0 * y)

    image = export(opened(), series_image(ramp(8, 16, 20.0), space, kind="field_map"))
    np.testing.assert_allclose(image.data[0, 0], ramp(12, 21, 10.0), atol=1e-3)


# Header and meta.


def test_header_is_that_of_the_reference_readout():
    head = export(opened(), series_image(noise())).getHead()
    source = reference()
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position", "physiology_time_stamp",
                 "user_int", "user_float"):  # fmt: skip
        assert list(getattr(head, name)) == list(getattr(source, name)), name
    assert (head.measurement_uid, head.acquisition_time_stamp) == (77, 123456)
    counters = (head.average, head.slice, head.contrast, head.phase, head.repetition, head.set)
    assert counters == (1, 2, 3, 4, 5, 6)


def test_images_are_counted_from_one_in_each_series_of_each_session():
    gadget = opened()
    items = [series_image(noise(), kind=kind) for kind in ("preview", "image", "preview", "image", "image")]
    images = [export(gadget, item) for item in items]
    assert [(i.image_series_index, i.image_index) for i in images] == [(2, 1), (1, 1), (2, 2), (1, 2), (1, 3)]
    gadget.open(Session(HEADER))
    assert export(gadget, series_image(noise())).image_index == 1


def test_meta_is_what_the_scanner_expects():
    image = export(opened(), series_image(noise(), history=("20 iterations",)))
    meta = image.meta
    scale = float(meta["ImageScaleFactor"])
    assert meta["ImageProcessingHistory"][:3] == ["whitened", "20 iterations", "seed 3"]
    assert meta["ImageProcessingHistory"][3] == f"scale: pixel = {scale:.9g} x value"
    expected = {
        "DataRole": "Image", "SeriesDescription": "spiral_image", "SequenceDescriptionAdditional": "image",
        "ImageComments": "reconstruction", "Keep_image_geometry": "1",
    }  # fmt: skip
    assert {key: meta[key] for key in expected} == expected
    assert "IceMiniHead" not in meta
    centre, width = float(meta["WindowCenter"]), float(meta["WindowWidth"])
    assert centre - width / 2 == pytest.approx(0)
    assert centre + width / 2 == pytest.approx(4095 / 4, rel=1e-4)
    for key, name in (("ImageRowDir", "read_dir"), ("ImageColumnDir", "phase_dir"), ("ImageSliceNormDir", "slice_dir")):
        assert [float(x) for x in meta[key]] == list(getattr(reference(), name))
        assert all(len(x.partition(".")[2]) == 18 for x in meta[key])


def test_a_caveat_stands_in_the_comment():
    item = series_image(noise())
    item.frame.caveat = "no field was found, the image is without a correction for off-resonance"
    comment = export(opened(), item).meta["ImageComments"]
    assert comment == "reconstruction; no field was found, the image is without a correction for off-resonance"


# What cannot be exported.


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), complex(0, float("nan"))])
def test_values_that_are_not_finite_are_refused_by_name(bad):
    data = noise()
    data[3, 4] = bad
    with pytest.raises(
        ValueError, match=r"image of slice 2, contrast 3, repetition 5, set 6, phase 4: 1 of 128 pixels are not finite"
    ):
        export(opened(), series_image(data))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (Space((1, 8, 16), (5, 160, 320), (1, 8, 8), (5, 200, 160)), "along y is 200 mm, more than the encoded 160 mm"),
        (Space((1, 8, 16), (5, 160, 320), (2, 8, 8), (5, 160, 160)), "two-dimensional"),
        (Space((1, 8, 16), (5, 160, 320), (1, 8, 8), (5, 0, 160)), "above 0 mm"),
        (Space((1, 8, 8), (5, 160, 320), (1, 8, 8), (5, 160, 160)), r"expected the encoded grid \(8, 8\)"),
    ],
)
def test_spaces_that_do_not_fit_are_refused(space, message):
    with pytest.raises(ValueError, match=message):
        export(opened(), series_image(noise(), space))


def test_kinds_of_other_packages_get_a_series_of_their_own():
    gadget = opened()
    found = [export(gadget, series_image(noise(), kind=kind)) for kind in ("photo", "image", "sketch", "photo")]
    assert [image.image_series_index for image in found] == [50, 1, 51, 50]
    assert [image.image_index for image in found] == [1, 1, 1, 2]
    assert found[0].meta["SeriesDescription"].endswith("photo")
