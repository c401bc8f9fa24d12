from contextlib import closing

import ismrmrd
import numpy as np
import pytest

from pipelines.errors import PipelineError
from pipelines.replay import Replay, _tick_ms, _without_version, paced, replay_here, replay_to
from pipelines.streams.file import RawFile

from mrd_items import HEADER_XML, acquisition, configuration


def plain(items, total):
    assert total == 4
    return items


@pytest.fixture
def raw(tmp_path):
    with closing(ismrmrd.Dataset(str(tmp_path / "raw.h5"), "dataset")) as dataset:
        dataset.write_xml_header(HEADER_XML.encode())
        for i in range(4):
            dataset.append_acquisition(acquisition(i, acquisition_time_stamp=1000 + 20 * i))
    with RawFile(tmp_path / "raw.h5") as file:
        yield file


@pytest.fixture
def pipeline(tmp_path):
    path = tmp_path / "to_image.xml"
    path.write_text(configuration("ToImage"))
    return str(path)


def test_here_and_through_a_server_give_the_same_images(raw, pipeline, site, address):
    here, there = [], []
    job = Replay(raw=raw.path, pipeline=pipeline)
    replay_here(job, raw, site, here.append, lambda text: None, plain)
    replay_to(address, job, raw, there.append, lambda text: None, plain, 5.0)
    assert len(here) == len(there) == 4
    for a, b in zip(here, there, strict=True):
        assert a.getHead() == b.getHead()
        np.testing.assert_array_equal(a.data, b.data)


def test_parameters_reach_both(raw, pipeline, site, address):
    job = Replay(raw=raw.path, pipeline=pipeline, parameters={"ToImage.color": "red"})
    with pytest.raises(PipelineError, match=r"--set: ToImage\.color: there is no such property"):
        replay_here(job, raw, site, print, print, plain)
    with pytest.raises(Exception, match=r"parameters: ToImage\.color: there is no such property"):
        replay_to(address, job, raw, print, print, plain, 5.0)


@pytest.mark.parametrize("version", ["<version>8</version>", ""])
def test_the_header_is_sent_without_its_version(version):
    notes = []
    header = HEADER_XML.replace("<experimentalConditions>", version + "<experimentalConditions>")
    assert _without_version(header, notes.append) == HEADER_XML
    assert len(notes) == bool(version)


@pytest.mark.parametrize(("tick_ms", "pauses"), [(2.5, 0.050), (1.0, 0.020)])
def test_pacing_follows_the_time_stamps(tick_ms, pauses):
    slept = []
    items = [acquisition(i, acquisition_time_stamp=1000 + 20 * i) for i in range(4)]
    assert [item.scan_counter for item in paced(items, tick_ms, slept.append)] == [0, 1, 2, 3]
    # nothing really sleeps here, so each pause is counted from the start
    assert slept == pytest.approx([pauses, 2 * pauses, 3 * pauses], abs=0.01)


def test_absurd_jumps_of_the_clock_are_not_waited_for():
    slept = []
    stamps = [0, 40_000_000, 40_000_010, 5]
    list(paced([acquisition(i, acquisition_time_stamp=s) for i, s in enumerate(stamps)], 2.5, slept.append))
    assert slept == pytest.approx([0.025], abs=0.01)


@pytest.mark.parametrize(("vendor", "tick"), [("SIEMENS", 2.5), ("GE", 1.0), (None, 1.0)])
def test_the_tick_follows_the_vendor(vendor, tick):
    system = f"<acquisitionSystemInformation><systemVendor>{vendor}</systemVendor></acquisitionSystemInformation>"
    header = HEADER_XML.replace("<experimentalConditions>", (system if vendor else "") + "<experimentalConditions>")
    assert _tick_ms(header) == tick
