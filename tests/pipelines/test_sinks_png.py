"""PNG output, read back with Pillow."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipelines.sinks.png import PngSink

from image_items import TYPES, mrd_image


def written(folder, *images):
    sink = PngSink(folder)
    for image in images:
        sink.write(image)
    sink.close()
    return [np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))]


def test_rows_run_downwards_and_grey_is_linear_in_the_window(tmp_path):
    ramp = np.array([[0, 50, 100], [150, 200, 300]], np.uint16)
    (grey,) = written(tmp_path, mrd_image(ramp, meta={"WindowCenter": "100", "WindowWidth": "200"}))
    assert grey.dtype == np.uint8
    np.testing.assert_array_equal(grey, [[0, 64, 128], [191, 255, 255]])


def test_without_a_window_percentiles_are_taken(tmp_path):
    values = np.arange(10000, dtype=np.float32).reshape(100, 100)
    values[0, 0] = 1e9  # a single hot pixel does not darken the rest
    (grey,) = written(tmp_path, mrd_image(values, meta={"WindowCenter": "none"}))
    assert abs(int(grey[50, 0]) - 128) <= 1


def test_values_that_are_not_finite_are_black(tmp_path):
    (grey,) = written(tmp_path, mrd_image(np.array([[np.nan, np.inf, 1, 2]], np.float32)))
    assert grey[0, :2].tolist() == [0, 0]
    assert grey[0, 3] == 255
    (grey,) = written(tmp_path / "all", mrd_image(np.full((2, 2), np.nan, np.float32)))
    assert not grey.any()


def test_constant_image_without_a_window(tmp_path):
    (grey,) = written(tmp_path, mrd_image(np.zeros((2, 2), np.float32)))
    assert not grey.any()


def test_complex_images_show_their_magnitude(tmp_path):
    (grey,) = written(tmp_path, mrd_image(np.array([[0, 3 + 4j, -10]], np.complex64)))
    assert grey[0, 2] == 255
    assert abs(int(grey[0, 1]) - 128) <= 2


def test_planes_are_tiled_row_by_row(tmp_path):
    planes = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1) * np.ones((1, 1, 4, 5), np.float32)
    image = mrd_image(planes, meta={"WindowCenter": "127.5", "WindowWidth": "255"})
    (grey,) = written(tmp_path, image)
    assert grey.shape == (8, 15)
    np.testing.assert_array_equal(grey[::4, ::5], [[0, 1, 2], [3, 4, 5]])


def test_left_over_tiles_are_empty(tmp_path):
    (grey,) = written(
        tmp_path, mrd_image(np.full((3, 2, 2), 255, np.uint16), meta={"WindowCenter": "127.5", "WindowWidth": "255"})
    )
    np.testing.assert_array_equal(grey[::2, ::2], [[255, 255], [255, 0]])


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_can_be_looked_at(tmp_path, dtype):
    (grey,) = written(tmp_path, mrd_image(np.arange(12).reshape(3, 4).astype(dtype)))
    assert (grey[0, 0], grey[2, 3]) == (0, 255)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("deviation", "series004_deviation_00001.png"),
        ("field map", "series004_field_map_00001.png"),
        ("../../T1 (fat)\0", "series004_t1_fat_00001.png"),
        (100 * "a", f"series004_{39 * 'a'}_00001.png"),
        ("", "series004_00001.png"),
    ],
)
def test_the_name_says_what_is_shown(tmp_path, kind, name):
    meta = {"SequenceDescriptionAdditional": kind}
    written(tmp_path, mrd_image(np.ones((2, 2), np.float32), image_series_index=4, meta=meta))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_one_file_per_image_by_series(tmp_path):
    image = np.ones((2, 2), np.float32)
    written(tmp_path, mrd_image(image), mrd_image(image), mrd_image(image, image_series_index=2))
    names = [path.name for path in sorted(tmp_path.glob("*"))]
    assert names == ["series001_00001.png", "series001_00002.png", "series002_00001.png"]
    with pytest.raises(FileExistsError, match="series001"):
        PngSink(tmp_path)
    PngSink(tmp_path, overwrite=True).write(mrd_image(image))
