"""Files that libhdf5 may hang or crash on are read in a process of their own, with the same result."""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import ismrmrd
import psutil
import pytest
from click.testing import CliRunner

from pipelines import recordings
from pipelines.cli import main
from pipelines.errors import FileError
from pipelines.recordings import Recordings
from pipelines.streams import file_apart
from pipelines.streams.file import RawFile
from pipelines.streams.file_apart import RawFileApart, Reader, open_raw_apart
from pipelines.wire import Close, ConfigFile, ConfigText, HeaderText, Text

from mrd_items import HEADER_XML, acquisition, configuration
from recorded import recorded, trajectory_acquisition, waveform

ITEMS = [acquisition(0), trajectory_acquisition(1), waveform(2), acquisition(3, channels=5, samples=3)]


def recording(folder: Path, *messages) -> Path:
    with closing(Recordings(folder).begin(1)) as journal:
        journal.write(recorded(*messages))
    return Recordings(folder).finish(journal.path)


@pytest.fixture
def path(tmp_path) -> Path:
    return recording(tmp_path, ConfigFile("preview"), HeaderText(HEADER_XML), Text("{}"), *ITEMS)


def test_what_is_read_is_what_is_read_here(path):
    with RawFile(path) as here, RawFileApart(path) as apart:
        for name in ("path", "header_xml", "acquisitions", "config", "parameters", "dropped"):
            assert getattr(apart, name) == getattr(here, name)
        assert apart.config == ConfigFile("preview")
        assert apart.dropped
        assert list(apart.items()) == list(here.items())
        worker = psutil.Process(apart._reader._process.pid)
    assert not worker.is_running()


def test_a_configuration_as_text_stays_one(tmp_path):
    config = ConfigText(configuration("Count"))
    with RawFileApart(recording(tmp_path, config, HeaderText(HEADER_XML), *ITEMS, Close())) as apart:
        assert (apart.config, apart.dropped) == (config, None)


def test_errors_are_those_of_the_file(path, tmp_path):
    (tmp_path / "b.h5").write_bytes(b"something else")
    for wrong, group in ((path, "other"), (tmp_path / "b.h5", "dataset")):
        with pytest.raises(FileError) as here:
            RawFile(wrong, group)
        with pytest.raises(FileError) as apart:
            RawFileApart(wrong, group)
        assert str(apart.value) == str(here.value)
    with closing(ismrmrd.Dataset(str(path), "dataset", create_if_needed=False)) as file:
        entry = file._dataset["data"][2]
        entry["head"]["number_of_samples"] = 4464
        file._dataset["data"][2] = entry
    with RawFileApart(path) as apart, pytest.raises(FileError, match=f"{path}: acquisition 2 holds 15 samples"):
        list(apart.items())


@pytest.mark.parametrize(
    ("number", "reason"),
    [(signal.SIGSTOP, "nothing more could be read of it in 1 s"), (signal.SIGSEGV, "libhdf5 crashed")],
)
def test_a_process_that_hangs_or_crashes_is_told_and_has_a_successor(path, monkeypatch, number, reason):
    monkeypatch.setattr(file_apart, "SILENCE_SECONDS", 1.0)
    with Reader() as reader:
        reader.describe(path)
        process = reader._process
        process.send_signal(number)
        with pytest.raises(FileError, match=f"^{path}: .*{reason}"):
            list(reader.items(path))
        assert process.poll() is not None
        monkeypatch.setattr(file_apart, "SILENCE_SECONDS", 30.0)
        assert len(list(reader.items(path))) == len(ITEMS)


def test_a_file_on_which_libhdf5_hangs_is_named_in_the_list_and_by_replay(path, monkeypatch):
    class Stopped(file_apart.subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.send_signal(signal.SIGSTOP)

    monkeypatch.setattr(file_apart, "SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(file_apart.subprocess, "Popen", Stopped)
    (entry,) = Recordings(path.parent).entries()
    assert (entry.state, entry.acquisitions) == ("finished", None)
    assert entry.problem.startswith("nothing more could be read of it in 0.5 s, so it is given up: ")
    done = CliRunner().invoke(main, ["replay", str(path), "-o", str(path.with_name("out.h5"))])
    assert done.exit_code == 1
    assert f"Error: {path}: nothing more could be read of it in 0.5 s" in done.output


def test_a_journal_is_read_here(tmp_path):
    with closing(Recordings(tmp_path).begin(1)) as journal:
        journal.write(recorded(HeaderText(HEADER_XML), *ITEMS))
    with open_raw_apart(journal.path) as raw:
        assert isinstance(raw, recordings.JournalFile)
        assert raw.acquisitions == 3
