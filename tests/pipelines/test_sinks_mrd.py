"""MRD output, read back with the ismrmrd package."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import ismrmrd
import numpy as np
import pytest

from pipelines.sinks.mrd import MrdSink

from image_items import HEADER, TYPES, mrd_image
from mrd_items import acquisition


def read(path, group, number=0):
    dataset = ismrmrd.Dataset(str(path), "dataset", False)
    image = dataset.read_image(group, number)
    dataset.close()
    return image


def numbers(dtype, *shape):
    return (100 * np.random.default_rng(3).standard_normal(shape)).astype(dtype)


@pytest.mark.filterwarnings("ignore::numpy.exceptions.ComplexWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", TYPES)
def test_images_come_back_as_they_were(tmp_path, dtype):
    image = mrd_image(numbers(dtype, 2, 3, 4, 5), meta={"DataRole": "Image", "ImageProcessingHistory": ["a", "b"]})
    sink = MrdSink(tmp_path / "new" / "out.h5", HEADER)
    sink.write(image)
    sink.close()
    back = read(tmp_path / "new" / "out.h5", "image_1")
    assert back.data.dtype == dtype
    np.testing.assert_array_equal(back.data, image.data)
    assert back.meta == {"DataRole": "Image", "ImageProcessingHistory": ["a", "b"]}
    np.testing.assert_array_equal(list(back.getHead().read_dir), list(image.getHead().read_dir))


def test_int32_is_kept_by_value(tmp_path):
    """The ismrmrd package holds int32 images in int64 arrays and cannot write them."""
    image = mrd_image(np.array([[2**31 - 1, -5]], np.int64))
    assert image.data_type == ismrmrd.DATATYPE_INT
    sink = MrdSink(tmp_path / "out.h5")
    sink.write(image)
    sink.close()
    np.testing.assert_array_equal(read(tmp_path / "out.h5", "image_1").data[0, 0], [[2**31 - 1, -5]])


def test_images_that_differ_do_not_share_an_array(tmp_path):
    small, large, whole = np.ones((2, 3), np.float32), np.full((4, 5), 2, np.float32), np.full((2, 3), 3, np.uint16)
    sink = MrdSink(tmp_path / "out.h5")
    for array in (small, large, whole, small):
        sink.write(mrd_image(array))
    sink.write(mrd_image(small, image_series_index=2))
    sink.close()
    assert [read(tmp_path / "out.h5", "image_1", i).data.max() for i in (0, 1)] == [1, 1]
    assert read(tmp_path / "out.h5", "image_1_2").data.shape == (1, 1, 4, 5)
    assert read(tmp_path / "out.h5", "image_1_3").data.dtype == np.uint16
    assert read(tmp_path / "out.h5", "image_2").data.max() == 1


def test_header_readouts_and_waveforms_are_kept(tmp_path):
    waveform = ismrmrd.Waveform.from_array(np.arange(12, dtype=np.uint32).reshape(3, 4))
    sink = MrdSink(tmp_path / "out.h5", HEADER)
    sink.write(acquisition(5))
    sink.write(waveform)
    sink.close()
    dataset = ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", False)
    header = ismrmrd.xsd.CreateFromDocument(dataset.read_xml_header())
    assert header.subjectInformation.patientName == "Doe^Jane"
    np.testing.assert_array_equal(dataset.read_acquisition(0).data, acquisition(5).data)
    np.testing.assert_array_equal(dataset.read_waveform(0).data, waveform.data)
    dataset.close()


def test_existing_file_is_left_alone_unless_told(tmp_path):
    path = tmp_path / "out.h5"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="out.h5"):
        MrdSink(path)
    assert path.read_text() == "precious"
    sink = MrdSink(path, overwrite=True)
    sink.write(mrd_image(np.ones((2, 2), np.float32)))
    sink.close()
    assert read(path, "image_1").data.sum() == 4


WRITE_AND_DIE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from image_items import HEADER, mrd_image
from pipelines.sinks.mrd import MrdSink
sink = MrdSink(Path(sys.argv[1]), HEADER)
for value in (1, 2, 3):
    sink.write(mrd_image(np.full((64, 64), value, np.float32)))
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_images_survive_a_killed_process(tmp_path):
    path = os.pathsep.join(sys.path)
    died = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, tmp_path / "out.h5"], env={"PYTHONPATH": path})
    assert died.returncode == -signal.SIGKILL
    assert [read(tmp_path / "out.h5", "image_1", i).data.mean() for i in range(3)] == [1, 2, 3]
