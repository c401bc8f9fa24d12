import gzip
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from recon_core.training.image_files import ImageFileError, image_files, slices_of

SMALLEST = 32


@pytest.fixture(autouse=True)
def few_pixels(request, monkeypatch):
    """Tests of which pixel is which are easier to read with few."""
    if "least_size" not in request.node.name:
        monkeypatch.setattr("recon_core.training.image_files._SMALLEST", 3)


def stored(path, array, edges=(1.0, 1.0, 1.0), **header):
    """A NIfTI file with voxels of the given edges in mm."""
    image = nibabel.Nifti1Image(array, np.eye(4), dtype=array.dtype)
    image.header.set_zooms([*edges, 1.0, 1.0][: array.ndim])
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path


def volume(*shape, dtype=np.int16):
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)


def numpy_file(path, array):
    np.save(path, array)
    return path


def archive(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz"])
def test_a_flat_voxel_volume_is_cut_along_its_third_axis(tmp_path, name):
    values = volume(5, 4, 3)
    slices = list(slices_of(stored(tmp_path / name, values, edges=(1, 1, 3))))
    assert len(slices) == 3
    for z, image in enumerate(slices):
        for x in range(5):
            for y in range(4):
                assert image[y, x] == values[x, y, z]


def test_a_volume_of_cubes_is_cut_in_three_directions(tmp_path):
    values = volume(5, 4, 3)
    slices = list(slices_of(stored(tmp_path / "head.nii", values, edges=(1, 1.1, 1.2))))
    assert [image.shape for image in slices] == [(4, 5)] * 3 + [(3, 5)] * 4 + [(3, 4)] * 5
    x, y, z = 4, 1, 2
    assert slices[z][y, x] == slices[3 + y][z, x] == slices[3 + 4 + x][z, y] == values[x, y, z]


@pytest.mark.parametrize("edges", [(1, 1, 1.3), (1.3, 1, 1), (0.5, 1, 1)])
def test_a_volume_that_would_be_squeezed_is_cut_in_one_direction(tmp_path, edges):
    assert len(list(slices_of(stored(tmp_path / "head.nii", volume(5, 4, 3), edges)))) == 3


def test_echoes_are_stacked(tmp_path):
    values = volume(5, 4, 3, 2)
    slices = list(slices_of(stored(tmp_path / "head.nii", values, edges=(1, 1, 5))))
    assert len(slices) == 6
    assert {int(image[1, 2]) for image in slices} == {int(n) for n in values[2, 1].flat}


def test_a_single_slice(tmp_path):
    values = volume(5, 4)
    for shape in ((5, 4), (5, 4, 1)):
        (image,) = slices_of(stored(tmp_path / "head.nii", values.reshape(shape)))
        np.testing.assert_array_equal(image, values.T)


def test_nifti_intensities_are_scaled_as_the_header_says(tmp_path):
    path = stored(tmp_path / "head.nii", volume(5, 4))
    raw = bytearray(path.read_bytes())
    raw[112:120] = np.array([0.5, 10], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(raw)
    (image,) = slices_of(path)
    np.testing.assert_allclose(image, 0.5 * volume(5, 4).T + 10)


def test_complex_nifti_stays_complex(tmp_path):
    values = volume(5, 4, dtype=np.complex64) * (1 + 2j)
    (image,) = slices_of(stored(tmp_path / "head.nii", values.astype(np.complex64)))
    np.testing.assert_array_equal(image, values.T)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float16, np.float64, np.complex64])
def test_numpy_stacks_are_taken_as_stored(tmp_path, dtype):
    values = volume(2, 3, 4, 5).astype(dtype)
    for path in (numpy_file(tmp_path / "head.npy", values), archive(tmp_path / "head.npz", images=values)):
        slices = list(slices_of(path))
        assert len(slices) == 6
        assert slices[0].dtype == dtype
        np.testing.assert_array_equal(slices[4], values[1, 1])


def test_every_array_of_images_is_taken_from_an_npz_file(tmp_path):
    path = archive(
        tmp_path / "head.npz", train=volume(2, 4, 5), val=volume(6, 7), age=np.array(30), mask=np.ones((4, 5), bool)
    )
    assert sorted(image.shape for image in slices_of(path)) == [(4, 5), (4, 5), (6, 7)]


def test_one_array_by_its_name(tmp_path):
    path = archive(tmp_path / "head.npz", train=volume(2, 4, 5), val=volume(6, 7))
    assert [image.shape for image in slices_of(path, "val")] == [(6, 7)]
    with pytest.raises(ImageFileError, match=r'head.npz: .* no array "test"; it holds train, val'):
        list(slices_of(path, "test"))
    # The name is for npz files; the others have one array.
    assert len(list(slices_of(numpy_file(tmp_path / "head.npy", volume(4, 5)), "val"))) == 1


def test_pickled_objects_are_refused_unopened(tmp_path):
    opened = tmp_path / "opened"

    class Trap:
        def __reduce__(self):
            return Path.touch, (opened,)

    objects = np.array([[Trap()]], dtype=object)
    for path in (numpy_file(tmp_path / "trap.npy", objects), archive(tmp_path / "trap.npz", images=objects)):
        with pytest.raises(ImageFileError, match="trap.np.: not readable as images: .*allow_pickle=False"):
            list(slices_of(path))
    assert not opened.exists()


def damaged(path, kind):
    whole = path.read_bytes()
    if kind == "cut off":
        return whole[: len(whole) // 2]
    if kind == "empty":
        return b""
    if kind == "something else":
        return b"these are no images" * 40
    start = len(whole) // 2 if path.suffix != ".gz" else 30  # a checksum at the end of .gz is not looked at
    return whole[:start] + bytes(255 - byte for byte in whole[start : start + 40]) + whole[start + 40 :]


@pytest.mark.parametrize("kind", ["cut off", "empty", "something else", "bytes turned"])
@pytest.mark.parametrize("name", ["head.nii", "head.nii.gz", "plain.npz", "packed.npz", "head.npy"])
def test_damaged_files_are_named(tmp_path, name, kind):
    path, values = tmp_path / name, volume(20, 30, 8)
    if "nii" in name:
        stored(path, values)
    elif name == "packed.npz":
        np.savez_compressed(path, images=values)
    else:
        archive(path, images=values) if name == "plain.npz" else numpy_file(path, values)
    path.write_bytes(damaged(path, kind))
    if kind == "bytes turned" and name in ("head.nii", "head.npy"):
        assert list(slices_of(path))  # no checksum tells
        return
    with pytest.raises(ImageFileError, match=f"{name}: not readable as images: "):
        list(slices_of(path))


@pytest.mark.parametrize(
    ("offset", "changed", "message"),
    [(70, b"\x84\x03", "900 not recognized"), (108, b"\0\0\0\x3f", "too low")],
)
def test_nifti_headers_that_cannot_be_are_named(tmp_path, offset, changed, message):
    path = stored(tmp_path / "head.nii", volume(5, 4, 3))
    raw = bytearray(path.read_bytes())
    raw[offset : offset + len(changed)] = changed
    path.write_bytes(raw)
    with pytest.raises(ImageFileError, match=f"head.nii: not readable as images: .*{message}"):
        list(slices_of(path))


def test_headers_of_numpy_files_that_cannot_be_are_named(tmp_path):
    path = numpy_file(tmp_path / "head.npy", volume(4, 5))
    path.write_bytes(path.read_bytes().replace(b"}", b"("))
    with pytest.raises(ImageFileError, match="head.npy: not readable as images: "):
        list(slices_of(path))


def test_archives_of_other_things_hold_no_images(tmp_path):
    with zipfile.ZipFile(tmp_path / "texts.npz", "w") as file:
        file.writestr("readme.txt", "no array")
    for path in (
        tmp_path / "texts.npz",
        archive(tmp_path / "empty.npz"),
        archive(tmp_path / "numbers.npz", a=np.arange(5)),
        archive(tmp_path / "words.npz", a=np.array([["a", "b"]])),
        archive(tmp_path / "masks.npz", a=np.ones((4, 4), bool)),
    ):
        with pytest.raises(ImageFileError, match=path.name):
            list(slices_of(path))


def test_coloured_nifti_is_no_image(tmp_path):
    colours = np.zeros((5, 4, 3), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageFileError, match="expected arrays of numbers with two dimensions or more, found none"):
        list(slices_of(stored(tmp_path / "screenshot.nii", colours)))


def test_files_are_found_below_folders(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    for name in ("b/c/2.nii.gz", "b/1.npz", "b/notes.txt", "a.npy"):
        (tmp_path / name).write_bytes(b"")
    found = image_files([tmp_path / "b", tmp_path / "a.npy"])
    assert found == [tmp_path / "b/1.npz", tmp_path / "b/c/2.nii.gz", tmp_path / "a.npy"]


def test_paths_without_images_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match="absent: no such file or folder"):
        image_files([tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageFileError, match=r"empty: expected .nii, .nii.gz, .npz, .npy files, found none"):
        image_files([tmp_path / "empty"])
    (tmp_path / "image.dcm").write_bytes(b"DICM")
    with pytest.raises(ImageFileError, match=r"image.dcm: expected .nii"):
        image_files([tmp_path / "image.dcm"])


def test_the_name_of_a_file_says_what_it_is(tmp_path):
    """Its last suffix, that is: a stack that was once a volume is still a stack."""
    path = archive(tmp_path / "head.nii.npz", images=volume(4, 5))
    assert len(list(slices_of(path))) == 1
    packed = tmp_path / "head.nii.gz"
    packed.write_bytes(gzip.compress(stored(tmp_path / "head.nii", volume(5, 4)).read_bytes()))
    assert len(list(slices_of(packed))) == 1


def test_of_the_least_size_are_images_but_neither_colours_nor_affines(tmp_path):
    heads = volume(2, SMALLEST, SMALLEST)
    assert len(list(slices_of(numpy_file(tmp_path / "least.npy", heads)))) == 2
    (tmp_path / "a").mkdir()
    for path, told in (
        (numpy_file(tmp_path / "colours.npy", volume(64, 48, 3)), r"got \[64, 48, 3\]; stacks are \[..., y, x\]"),
        (archive(tmp_path / "affine.npz", images=heads, affine=np.eye(4)), r"got affine \[4, 4\]; .*--key chooses"),
        (stored(tmp_path / "a/line.nii", volume(64, 31, 40)), r"got a volume \[64, 31, 40\]"),
    ):
        with pytest.raises(ImageFileError, match=f"{path.name}: .*expected images of 32 pixels and more.*{told}"):
            list(slices_of(path))
    assert len(list(slices_of(tmp_path / "affine.npz", "images"))) == 2


def test_a_slab_below_the_least_size_is_cut_along_its_third_axis_alone(tmp_path):
    for thickness, count in ((SMALLEST - 1, SMALLEST - 1), (SMALLEST, 3 * SMALLEST)):
        path = stored(tmp_path / "slab.nii", volume(SMALLEST, SMALLEST, thickness))
        assert len(list(slices_of(path))) == count


def test_suffixes_in_capitals_are_seen_and_hidden_files_are_not(tmp_path):
    stored(tmp_path / "head.nii.gz", volume(5, 4)).rename(tmp_path / "HEAD.NII.GZ")
    (tmp_path / "._HEAD.NII.GZ").write_bytes(b"of a Macintosh")
    (found,) = image_files([tmp_path])
    assert found.name == "HEAD.NII.GZ"
    np.testing.assert_array_equal(next(slices_of(found)), volume(5, 4).T)


def test_a_file_that_is_given_twice_counts_once(tmp_path):
    path = numpy_file(tmp_path / "head.npy", volume(5, 4))
    (tmp_path / "same.npy").symlink_to(path)
    assert len(image_files([path, tmp_path])) == 1
