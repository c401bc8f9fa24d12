"""Files are written where the user said, whatever images say of themselves."""

from __future__ import annotations

import ismrmrd
import numpy as np
import pytest

from pipelines.header import read_header
from pipelines.sinks import open_sinks

from image_items import mrd_image
from mrd_items import HEADER_XML

KEYS = ["SeriesDescription", "SequenceDescriptionAdditional", "SequenceDescription", "ImageComments", "DataRole"]


@pytest.mark.parametrize("name", ["../../out", "/tmp/out", "..", "a/b", "C:\\out", "con.", "x" * 5000, "\u202egnp.exe"])
def test_no_text_of_an_image_leads_out_of_its_folder(tmp_path, name):
    information = "".join(f"<{key}>{name}</{key}>" for key in ("measurementID", "protocolName", "seriesDescription"))
    information = information.replace("</measurementID>", "</measurementID><patientPosition>HFS</patientPosition>")
    xml = HEADER_XML.replace(
        "<experimentalConditions>",
        f"<measurementInformation>{information}</measurementInformation><experimentalConditions>",
    )
    home = tmp_path / "a" / "b" / "home"
    places = {kind: home / kind for kind in ("dicom", "nifti", "png")}
    with open_sinks(read_header(xml), mrd=home / "images.h5", **places) as sinks:
        for kind in (ismrmrd.IMTYPE_MAGNITUDE, ismrmrd.IMTYPE_PHASE):
            image = mrd_image(np.ones((4, 4), np.float32), meta=dict.fromkeys(KEYS, name))
            image.image_type = kind
            sinks.write(image)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 7
    assert all(path.parent in places.values() or path == home / "images.h5" for path in files)
    assert all(path.name.isascii() and len(path.name) < 100 for path in files)
