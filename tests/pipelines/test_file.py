import h5py
import ismrmrd
import numpy as np
import pytest

from pipelines.errors import FileError
from pipelines.streams.file import BLOCK, RawFile
from pipelines.wire import ConfigFile, ConfigText

from mrd_items import HEADER_XML, acquisition


def write(path, items) -> None:
    dataset = ismrmrd.Dataset(str(path), "dataset")
    dataset.write_xml_header(HEADER_XML.encode())
    for item in items:
        (dataset.append_acquisition if isinstance(item, ismrmrd.Acquisition) else dataset.append_waveform)(item)
    dataset.close()


def test_acquisitions_equal_those_that_were_written(tmp_path):
    items = [acquisition(i, channels=1 + i % 3, samples=8 + i % 5) for i in range(BLOCK + 7)]
    items[3].resize(11, 1, 2)
    items[3].traj[:] = np.arange(22).reshape(11, 2)
    write(tmp_path / "a.h5", items)
    with RawFile(tmp_path / "a.h5") as raw:
        assert raw.header_xml == HEADER_XML
        assert raw.acquisitions == len(items)
        back = list(raw.items())
    assert len(back) == len(items)
    for got, item in zip(back, items, strict=True):
        assert got.getHead() == item.getHead()
        np.testing.assert_array_equal(got.data, item.data)
        np.testing.assert_array_equal(got.traj, item.traj)


def test_waveforms_come_in_the_order_of_time(tmp_path):
    waves = [
        ismrmrd.Waveform.from_array(np.full((2, 3), i, np.uint32), time_stamp=10 * i + 5, waveform_id=4)
        for i in range(3)
    ]
    write(tmp_path / "a.h5", [*(acquisition(i, acquisition_time_stamp=10 * i) for i in range(3)), *waves])
    with RawFile(tmp_path / "a.h5") as raw:
        back = list(raw.items())
    assert [type(item).__name__ for item in back] == ["Acquisition", "Waveform"] * 3
    assert back[1::2] == waves


def test_a_file_that_is_not_hdf5(tmp_path):
    (tmp_path / "a.h5").write_text("hello")
    with pytest.raises(FileError, match=r"a\.h5: cannot be read as an HDF5 file"):
        RawFile(tmp_path / "a.h5")
    with pytest.raises(FileError, match=r"b\.h5: cannot be read as an HDF5 file"):
        RawFile(tmp_path / "b.h5")


def test_a_group_that_is_not_there_lists_those_that_are(tmp_path):
    write(tmp_path / "a.h5", [acquisition(0)])
    with pytest.raises(FileError, match=r"there is no group 'data' \(there are: dataset\)"):
        RawFile(tmp_path / "a.h5", "data")


@pytest.mark.parametrize(("part", "what"), [("xml", "MRD header"), ("data", "acquisitions")])
def test_a_group_without_its_parts(tmp_path, part, what):
    write(tmp_path / "a.h5", [acquisition(0)])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["dataset"][part]
    with pytest.raises(FileError, match=f"group 'dataset' holds no {what}"):
        RawFile(tmp_path / "a.h5")


def test_samples_that_contradict_the_header_are_named(tmp_path):
    write(tmp_path / "a.h5", [acquisition(0), acquisition(1)])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        entry = file["dataset/data"][1]
        entry["head"]["number_of_samples"] = 4464
        file["dataset/data"][1] = entry
    with RawFile(tmp_path / "a.h5") as raw, pytest.raises(FileError, match=r"acquisition 1 holds 32 samples .* 4464"):
        list(raw.items())


def test_a_header_that_is_not_text(tmp_path):
    write(tmp_path / "a.h5", [acquisition(0)])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["dataset/xml"][0] = b"\xff\xfe"
    with pytest.raises(FileError, match="the MRD header is not UTF-8 text"):
        RawFile(tmp_path / "a.h5")


@pytest.mark.parametrize("content", [np.zeros(5), np.zeros((2, 3), np.complex64)])
def test_a_dataset_of_something_else(tmp_path, content):
    write(tmp_path / "a.h5", [acquisition(0)])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["dataset/data"]
        file["dataset/data"] = content
    with pytest.raises(FileError, match="the dataset 'data' of group 'dataset' holds no MRD acquisitions"):
        RawFile(tmp_path / "a.h5")


def test_what_others_call_config_is_taken_only_as_text(tmp_path):
    write(tmp_path / "a.h5", [acquisition(0)])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["dataset/config"] = np.zeros((1, 3))
        file["dataset/config_file"] = [7]
        file["dataset"].attrs["dropped"] = 3
    with RawFile(tmp_path / "a.h5") as raw:
        assert (raw.config, raw.parameters, raw.dropped) == (None, None, None)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["dataset/config"]
        file.create_dataset("dataset/config", data=[b"<\xff>"], dtype=h5py.special_dtype(vlen=bytes))
    with pytest.raises(FileError, match="the text 'config' is not UTF-8"):
        RawFile(tmp_path / "a.h5")


def test_a_config_that_python_ismrmrd_server_kept(tmp_path):
    write(tmp_path / "a.h5", [acquisition(0)])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("dataset/config", data=[b"<configuration/>"], dtype=h5py.special_dtype(vlen=bytes))
    with RawFile(tmp_path / "a.h5") as raw:
        assert raw.config == ConfigText("<configuration/>")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file.create_dataset("dataset/config_file", data=["cg_sense"], dtype=h5py.special_dtype(vlen=str))
    with RawFile(tmp_path / "a.h5") as raw:
        assert raw.config == ConfigFile("cg_sense")
