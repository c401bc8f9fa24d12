"""Field maps in files that numpy, nibabel and ismrmrd wrote, against the field at each voxel's place in the patient."""

from __future__ import annotations

from contextlib import closing

import h5py
import ismrmrd
import nibabel as nib
import numpy as np
import pytest
import torch

from gadgets.field_map import FieldMap
from gadgets.field_map_file import FieldMapFile, save_slices
from gadgets.frame import Frame, Samples, SeriesImage, Space
from gadgets.geometry import affine_of_frame
from gadgets.image_export import ImageExport
from pipelines.sinks.geometry import affine_lps
from pipelines.sinks.mrd import MrdSink

from image_items import OBLIQUE, mrd_image
from scans import header, run, session

SPACE = Space((1, 20, 24), (4.0, 200.0, 240.0), (1, 20, 24), (4.0, 200.0, 240.0))
VOLUME = Space((6, 10, 12), (24.0, 100.0, 120.0), (6, 10, 12), (24.0, 100.0, 120.0))
CENTRE = np.array([12.0, -8.0, 30.0])


def field_at(points) -> np.ndarray:
    """A field that linear interpolation meets exactly, at LPS mm `[..., 3]`."""
    return 5 + points @ np.array([0.5, -0.3, 0.8])


def frame(at=CENTRE, axes=OBLIQUE, space=SPACE, number=0) -> Frame:
    reference = ismrmrd.AcquisitionHeader()
    reference.position = tuple(at)
    reference.read_dir, reference.phase_dir, reference.slice_dir = (tuple(axis) for axis in np.asarray(axes).T)
    reference.idx.slice = number
    samples = Samples(torch.zeros(1, 1, 1, dtype=torch.complex64), torch.zeros(2, 1, 1))
    return Frame(samples, torch.zeros(1, 1), space, reference)


def truth(item: Frame) -> np.ndarray:
    """The field at each voxel, from first principles: the position is the voxel N // 2."""
    head, space = item.reference, item.space
    steps = [fov / n for fov, n in zip(space.encoded_fov_mm, space.encoded_matrix, strict=True)]
    z, y, x = np.meshgrid(*[(np.arange(n) - n // 2) * s for n, s in zip(space.encoded_matrix, steps, strict=True)],
                          indexing="ij")  # fmt: skip
    directions = [np.array(list(d)) for d in (head.slice_dir, head.phase_dir, head.read_dir)]
    points = np.array(list(head.position)) + sum(a[..., None] * d for a, d in zip((z, y, x), directions, strict=True))
    return field_at(points).reshape(space.shape)


def looked_up(path, *frames, **properties):
    opened = session(header())
    run([FieldMap(file=path, **properties)], frames, opened)
    return opened


def volume(affine, shape) -> np.ndarray:
    """The field at the voxels of an LPS affine, `[x, y, z]`."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    return field_at(index @ affine[:3, :3].T + affine[:3, 3]).astype(np.float32)


def wide_affine(spacing=6.0, shape=(50, 50, 40)) -> np.ndarray:
    affine = np.diag([spacing, spacing * 1.2, spacing * 0.9, 1])
    affine[:3, 3] = CENTRE - affine[:3, :3] @ (np.array(shape) / 2 + 0.3)
    return affine


# NIfTI
@pytest.mark.parametrize("name", ["map.nii", "map.nii.gz"])
def test_a_nifti_volume_is_met_at_the_place_in_the_patient(tmp_path, name):
    affine = wide_affine()
    ras = np.diag([-1, -1, 1, 1]) @ affine
    nib.save(nib.Nifti1Image(volume(affine, (50, 50, 40)), ras), tmp_path / name)
    item = frame()
    opened = looked_up(tmp_path / name, item)
    np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)
    assert item.history[0].startswith(f"FieldMap: from {name}, ")
    assert not opened.tell


def test_a_three_dimensional_frame_is_met_too(tmp_path):
    affine = wide_affine()
    nib.save(nib.Nifti1Image(volume(affine, (50, 50, 40)), np.diag([-1, -1, 1, 1]) @ affine), tmp_path / "map.nii")
    item = frame(space=VOLUME)
    looked_up(tmp_path / "map.nii", item)
    assert item.field_map.shape == (6, 10, 12)
    np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)


def test_beyond_the_volume_the_edge_goes_on_and_this_is_told_once(tmp_path):
    affine = wide_affine(3.0)
    nib.save(
        nib.Nifti1Image(np.full((50, 50, 40), 7, np.float32), np.diag([-1, -1, 1, 1]) @ affine), tmp_path / "m.nii"
    )
    items = frame(), frame()
    opened = looked_up(tmp_path / "m.nii", *items)
    assert len(opened.tell.about("of the voxels of slice 0, contrast 0, repetition 0 lie outside of m.nii")) == 1
    assert "lie outside of it" in items[1].history[0]
    assert torch.all(items[0].field_map == 7)


def test_a_frame_outside_of_the_volume_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(volume(wide_affine(), (50, 50, 40)), wide_affine()), tmp_path / "map.nii")
    with pytest.raises(ValueError, match=r"at \(2000.0, 0.0, 0.0\) mm lies outside of the field map map.nii"):
        looked_up(tmp_path / "map.nii", frame(at=(2000, 0, 0)))


def test_a_nifti_file_without_geometry_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8, 4), np.float32), None), tmp_path / "map.nii")
    with pytest.raises(ValueError, match=r"map\.nii: expected a geometry, got a file with neither qform nor sform"):
        looked_up(tmp_path / "map.nii", frame())


def test_a_nifti_series_is_refused(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((8, 8, 4, 3), np.float32), np.eye(4)), tmp_path / "map.nii")
    with pytest.raises(ValueError, match=r"expected a volume of real numbers, got float32 \[8, 8, 4, 3\]"):
        looked_up(tmp_path / "map.nii", frame())


# npz
def test_an_array_covers_the_field_of_view(tmp_path):
    item = frame()
    np.savez(tmp_path / "map.npz", anything=truth(item))
    looked_up(tmp_path / "map.npz", item)
    np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)


def test_another_matrix_is_resized_about_the_centre(tmp_path):
    item, fine = frame(), frame(space=Space((1, 41, 60), (4.0, 200.0, 240.0), (1, 1, 1), (1, 1, 1)))
    np.savez(tmp_path / "map.npz", field_map_hz=truth(fine), magnitude=np.ones((41, 60)))
    looked_up(tmp_path / "map.npz", item)
    np.testing.assert_allclose(item.field_map, truth(item), atol=2.5)  # the first column lies half a voxel outside
    np.testing.assert_allclose(item.field_map[1:-1, 1:-1], truth(item)[1:-1, 1:-1], atol=1e-3)


def test_the_field_of_view_is_the_reconstructed_one(tmp_path):
    wide = Space((1, 20, 48), (4.0, 200.0, 480.0), (1, 20, 24), (4.0, 200.0, 240.0))
    item = frame(space=wide)
    np.savez(tmp_path / "map.npz", truth(frame()))
    looked_up(tmp_path / "map.npz", item)
    np.testing.assert_allclose(item.field_map[:, 12:36], truth(item)[:, 12:36], atol=1e-3)
    assert "50.0% of the voxels lie outside" in item.history[0]


def test_slices_are_met_by_their_number(tmp_path):
    items = [frame(at=CENTRE + 4 * n * OBLIQUE[:, 2], number=n) for n in range(3)]
    np.savez(tmp_path / "map.npz", np.stack([truth(item) for item in items]))
    looked_up(tmp_path / "map.npz", *items)
    for item in items:
        np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)
    with pytest.raises(ValueError, match=r"map\.npz has 3 slices, but no slice 3"):
        looked_up(tmp_path / "map.npz", frame(number=3))


def test_slices_with_geometry_are_met_by_their_place(tmp_path):
    """Evenly spaced slices are one volume, so that a frame may lie between them; others only serve their own place."""

    def saved(*offsets):
        items = [frame(at=CENTRE + z * OBLIQUE[:, 2]) for z in offsets]
        affines = [affine_lps(mrd_image(np.zeros((1, 1, 20, 24)), position=item.reference.position,
                                        fov=SPACE.encoded_fov_mm[::-1]).getHead()) for item in items]  # fmt: skip
        slices = [(truth(item).astype(np.float32), a) for item, a in zip(items, affines, strict=True)]
        save_slices(tmp_path / "map.npz", slices)

    between = frame(at=CENTRE + 7 * OBLIQUE[:, 2], number=5)
    saved(10.0, 0.0, 5.0)
    looked_up(tmp_path / "map.npz", between)
    np.testing.assert_allclose(between.field_map, truth(between), atol=1e-3)
    saved(0.0, 5.0, 20.0)
    own = frame(at=CENTRE + 20 * OBLIQUE[:, 2])
    looked_up(tmp_path / "map.npz", own)
    np.testing.assert_allclose(own.field_map, truth(own), atol=1e-3)
    with pytest.raises(ValueError, match="lies outside"):
        looked_up(tmp_path / "map.npz", frame(at=CENTRE + 12 * OBLIQUE[:, 2]))


@pytest.mark.parametrize(("offsets", "values"), [
    ((0.0, 1.5, 10.0), (100, 200, 300)), ((10.0, 1.5, 0.0), (300, 200, 100)), ((0.0, 0.5, 1.2), (0, 25, 60)),
])  # fmt: skip
def test_of_slices_that_overlap_the_closest_counts(tmp_path, offsets, values):
    items = [frame(at=CENTRE + z * OBLIQUE[:, 2]) for z in offsets]
    slices = [(np.full((20, 24), v, np.float32), affine_of_frame(f)) for f, v in zip(items, values, strict=True)]
    save_slices(tmp_path / "map.npz", slices)
    looked_up(tmp_path / "map.npz", *items)
    assert [float(item.field_map.mean()) for item in items] == list(values)


def test_of_slices_equally_close_the_later_counts(tmp_path):
    below, above, far = (frame(at=CENTRE + z * OBLIQUE[:, 2]) for z in (-1.0, 1.0, 10.0))
    for order in ((below, above), (above, below)):
        placed = [affine_of_frame(item) for item in (*order, far)]
        save_slices(tmp_path / "map.npz", [(np.full((20, 24), v, np.float32), a) for v, a in enumerate(placed)])
        item = frame()
        looked_up(tmp_path / "map.npz", item)
        assert torch.all(item.field_map == 1)


@pytest.mark.parametrize(("shape", "item", "message"), [
    ((20, 24), frame(number=2), "has 1 slice, but no slice 2, and no geometry"),
    ((1, 20, 24), frame(number=2), "has 1 slice, but no slice 2, and no geometry"),
    ((10, 12), frame(space=VOLUME), "of 1 slice has no geometry to bring it to slice 0, .* a volume of 6 partitions"),
    ((6, 10, 12), frame(space=VOLUME, number=1), "of 6 slices has no geometry to bring it to slice 1"),
])  # fmt: skip
def test_a_map_without_geometry_serves_nothing_but_its_own_slices(tmp_path, shape, item, message):
    np.savez(tmp_path / "map.npz", np.ones(shape))
    with pytest.raises(ValueError, match=rf"map\.npz {message}"):
        looked_up(tmp_path / "map.npz", item)


def test_nothing_is_left_of_a_map_that_could_not_be_stored(tmp_path, monkeypatch):
    def full(*args, **arrays):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        save_slices(tmp_path / "map.npz", [(np.ones((4, 4), np.float32), np.eye(4))])
    assert not list(tmp_path.iterdir())


def test_unknown_voxels_are_filled_from_their_neighbours(tmp_path):
    item = frame()
    known = truth(item)
    known[8:12, 9:14] = np.nan
    np.savez(tmp_path / "map.npz", known)
    looked_up(tmp_path / "map.npz", item)
    np.testing.assert_allclose(item.field_map, truth(item), atol=1.0)


def test_a_mask_says_which_voxels_are_known(tmp_path):
    item = frame()
    known, mask = truth(item), np.ones((20, 24), bool)
    mask[8:12, 9:14] = False
    np.savez(tmp_path / "map.npz", field=np.where(mask, known, 1000), mask=mask)
    looked_up(tmp_path / "map.npz", item)
    np.testing.assert_allclose(item.field_map, known, atol=1.0)


@pytest.mark.parametrize(("arrays", "array", "message"), [
    ({"a": np.ones((20, 24)), "mask": np.ones((24, 20), bool)}, "", r"mask of \[20, 24\] .* got bool \[24, 20\]"),
    ({"a": np.ones((20, 24)), "mask": np.ones((20, 24))}, "", r"a mask of \[20, 24\] as the map, got float64"),
    ({"a": np.ones((20, 24)), "mask": np.zeros((20, 24), bool)}, "", "its mask leaves no voxel"),
    ({"a": np.ones((20, 24)), "b": np.ones((20, 24))}, "", r"got a float64 \[20, 24\], b float64 \[20, 24\]"),
    ({"a": np.ones((20, 24))}, "b0", r"called b0, got a float64 \[20, 24\]; name it with the property array"),
    ({"a": np.ones(20)}, "", r"called field_map_hz, got a float64 \[20\]"),
    ({"a": np.ones((20, 24), complex)}, "a", r"of real numbers \[slice, y, x\] or \[y, x\] called a"),
    ({"a": np.full((20, 24), np.nan)}, "a", "no finite value"),
    ({"a": np.array([[None]])}, "", "[Oo]bject arrays"),
    ({"a": np.ones((2, 20, 24)), "affine_lps": np.eye(4)}, "", r"affine_lps \[slice, 4, 4\] for \[2, 20, 24\]"),
])  # fmt: skip
def test_npz_files_without_a_clear_map_are_refused(tmp_path, arrays, array, message):
    np.savez(tmp_path / "map.npz", **arrays)
    with pytest.raises(ValueError, match=rf"map\.npz.*{message}"):
        looked_up(tmp_path / "map.npz", frame(), array=array)


def test_an_array_can_be_named(tmp_path):
    np.savez(tmp_path / "map.npz", field_map_hz=np.ones((20, 24)), other=np.full((20, 24), 9))
    item = frame()
    looked_up(tmp_path / "map.npz", item, array="other")
    assert torch.all(item.field_map == 9)


# Unit and sign
def test_an_offset_is_added_in_our_unit_and_sign(tmp_path):
    np.savez(tmp_path / "map.npz", np.full((20, 24), 3.0))
    item = frame()
    looked_up(tmp_path / "map.npz", item, field_sign="+", offset=50.0)
    torch.testing.assert_close(item.field_map, torch.full((20, 24), 47.0))
    assert "50 Hz added" in item.history[0]


@pytest.mark.parametrize(("unit", "factor"), [("hz", 1), ("rad/s", 1 / (2 * np.pi)), ("ppm", 123.0)])
@pytest.mark.parametrize(("field_sign", "sign"), [("-", 1), ("+", -1)])
def test_unit_and_sign_of_the_file_become_ours(tmp_path, unit, factor, field_sign, sign):
    np.savez(tmp_path / "map.npz", np.full((20, 24), 3.0))
    item = frame()
    looked_up(tmp_path / "map.npz", item, unit=unit, field_sign=field_sign)
    torch.testing.assert_close(item.field_map, torch.full((20, 24), 3.0 * factor * sign))


def test_ppm_of_no_frequency_are_refused(tmp_path):
    np.savez(tmp_path / "map.npz", np.ones((20, 24)))
    opened = session(header())
    opened.header.experimentalConditions.H1resonanceFrequency_Hz = 0
    with pytest.raises(ValueError, match="ppm need the header's H1resonanceFrequency_Hz, got 0 Hz"):
        run([FieldMap(file=tmp_path / "map.npz", unit="ppm")], [frame()], opened)


@pytest.mark.parametrize(("name", "word"), [("unit", "Tesla"), ("field_sign", "minus"), ("source", "blind")])
def test_words_that_are_not_known_are_refused(name, word):
    with pytest.raises(ValueError, match=f"expected one of .*, got '{word}'"):
        FieldMap.properties()[name].parse(word)


# MRD
def written(path, *images):
    with closing(ismrmrd.Dataset(str(path), "dataset", True)) as dataset:
        for image in images:
            dataset.append_image(f"image_{image.image_series_index}", image)


def field_image(offset=0.0, series=3, words="field map", shape=(1, 30, 36)):
    """A slice of 300 by 360 mm of the field; its position is the voxel N // 2."""
    head = {
        "position": tuple(CENTRE + offset * OBLIQUE[:, 2]),
        "fov": (360.0, 300.0, 4.0),
        "image_series_index": series,
        "image_type": ismrmrd.IMTYPE_REAL,
        "meta": {"SequenceDescriptionAdditional": words},
    }
    affine = affine_lps(mrd_image(np.zeros((1, *shape), np.float32), **head).getHead())
    return mrd_image(volume(affine, shape[::-1]).T[None], **head)


def test_a_field_map_series_of_an_mrd_file_is_met_by_its_place(tmp_path):
    others = mrd_image(np.ones((1, 1, 30, 36), np.float32), meta={"SequenceDescriptionAdditional": "image"})
    written(tmp_path / "out.h5", others, field_image(0.0), field_image(6.0), field_image(12.0))
    item = frame(at=CENTRE + 9 * OBLIQUE[:, 2])
    looked_up(tmp_path / "out.h5", item)
    np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)


@pytest.mark.parametrize(("images", "message"), [
    ([field_image(words="image", series=1)], r"expected one series of field maps, got 0 among image_1 \(image\)"),
    ([field_image(), field_image(series=50)], r"got 2 among image_3 \(field map\), image_50 \(field map\); name"),
])  # fmt: skip
def test_an_mrd_file_with_no_or_several_field_maps_is_refused(tmp_path, images, message):
    written(tmp_path / "out.h5", *images)
    with pytest.raises(ValueError, match=message):
        looked_up(tmp_path / "out.h5", frame())
    item = frame()
    looked_up(tmp_path / "out.h5", item, array=f"image_{images[0].image_series_index}")
    np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)


def test_a_raw_file_holds_no_field_map(tmp_path):
    with closing(ismrmrd.Dataset(str(tmp_path / "raw.h5"), "dataset", True)) as dataset:
        dataset.append_acquisition(ismrmrd.Acquisition.from_array(np.ones((1, 8), np.complex64)))
    with pytest.raises(ValueError, match="got 0 among no images"):
        looked_up(tmp_path / "raw.h5", frame())


def test_what_was_exported_comes_back(tmp_path):
    """Through ImageExport and the sink of `spinstream replay -o`."""
    item = frame()
    exported = run([ImageExport()], [SeriesImage("field_map", torch.from_numpy(truth(item)), item)], session(header()))
    with closing(MrdSink(tmp_path / "out.h5")) as sink:
        sink.write(exported[0])
    looked_up(tmp_path / "out.h5", item)
    np.testing.assert_allclose(item.field_map, truth(item), atol=1e-3)


@pytest.mark.parametrize("name", ["map.npz", "map.nii", "map.nii.gz", "map.h5"])
@pytest.mark.parametrize("content", [None, b"", b"garbage", b"PK\x03\x04 garbage"])
def test_files_that_cannot_be_read_are_refused(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read the field map {name}"):
        FieldMapFile.load(tmp_path / name)


@pytest.mark.parametrize("name", ["map.mat", "map.gz", "map"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=rf"in a file that ends in \.npz, \.nii, \.nii\.gz, \.h5, got {name}"):
        FieldMapFile.load(tmp_path / name)


def test_complex_images_are_no_field_map(tmp_path):
    image = mrd_image(np.ones((1, 1, 4, 4), np.complex64), image_series_index=3)
    image.meta = {"SequenceDescriptionAdditional": "field map"}
    written(tmp_path / "out.h5", image)
    with pytest.raises(ValueError, match="expected real images"):
        looked_up(tmp_path / "out.h5", frame())
    with h5py.File(tmp_path / "out.h5") as file:
        assert "image_3" in file["dataset"]
