"""Several sinks as one."""

from __future__ import annotations

import logging

import ismrmrd
import nibabel as nib
import numpy as np
import pytest

from pipelines.errors import FileError
from pipelines.sinks import open_sinks

from image_items import HEADER, bright_voxel, mrd_image
from mrd_items import acquisition


def outputs(folder):
    return {"mrd": folder / "out.h5", **{kind: folder / kind for kind in ("dicom", "nifti", "png")}}


def test_every_image_goes_everywhere_and_readouts_to_mrd_only(tmp_path):
    image, _ = bright_voxel()
    with open_sinks(HEADER, **outputs(tmp_path)) as sinks:
        sinks.write(acquisition(0))
        sinks.write(image)
        sinks.write(image)
    assert sinks.images == 2
    counts = {kind: len(list((tmp_path / kind).glob("*"))) for kind in ("dicom", "nifti", "png")}
    assert counts == {"dicom": 6, "nifti": 2, "png": 2}
    dataset = ismrmrd.Dataset(str(tmp_path / "out.h5"), "dataset", False)
    assert (dataset.number_of_images("image_1"), dataset.number_of_acquisitions()) == (2, 1)
    dataset.close()


def test_image_that_cannot_be_stored_is_named(tmp_path):
    image = mrd_image(np.full((2, 2), np.nan, np.float32), image_index=5)
    message = "DicomSink cannot store image 5 of series 1: 4 of 4 pixels are not finite"
    with pytest.raises(FileError, match=message), open_sinks(None, dicom=tmp_path / "dicom") as sinks:
        sinks.write(image)


def test_what_was_held_is_written_when_the_stream_breaks(tmp_path):
    with pytest.raises(RuntimeError, match="the scanner left"), open_sinks(None, nifti=tmp_path) as sinks:
        sinks.write(mrd_image(np.ones((2, 2), np.float32)))
        raise RuntimeError("the scanner left")
    assert nib.load(tmp_path / "series001.nii.gz").shape == (2, 2, 1)


def test_failure_to_write_what_was_held_is_told(tmp_path):
    folder = tmp_path / "nifti"
    with pytest.raises(FileError, match="not complete"), open_sinks(None, nifti=folder) as sinks:
        sinks.write(mrd_image(np.ones((2, 2), np.float32)))
        folder.rmdir()


def test_existing_output_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "old.png").write_bytes(b"")
    with pytest.raises(FileError, match=r"old\.png"):
        open_sinks(None, **outputs(tmp_path))
    assert not (tmp_path / "out.h5").exists()


def test_missing_geometry_is_told_once(tmp_path, caplog):
    image = mrd_image(np.ones((2, 2), np.float32), np.zeros((3, 3)))
    with caplog.at_level(logging.WARNING, "spinstream"), open_sinks(None, png=tmp_path) as sinks:
        sinks.write(image)
        sinks.write(image)
    assert [record.message for record in caplog.records] == ["images have no read and phase direction; taken as axial"]
