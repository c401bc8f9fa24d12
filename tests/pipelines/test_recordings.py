import fcntl
import logging
import os
import shutil
import stat
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from click.testing import CliRunner

from pipelines import recordings as recordings_module
from pipelines import replay
from pipelines.cli import main
from pipelines.errors import FileError, PipelineError
from pipelines.recordings import Recordings
from pipelines.replay import Replay, replay_here, replay_to
from pipelines.streams import file_writer
from pipelines.streams.file import open_raw
from pipelines.wire import Close, ConfigFile, ConfigText, HeaderText, Text

from mrd_items import HEADER_XML, acquisition, configuration
from recorded import recorded, trajectory_acquisition, waveform

OPENING = [ConfigFile("preview"), HeaderText(HEADER_XML), Text('{"parameters": {"ImageExport.data_type": "float32"}}')]
READOUTS = [acquisition(i, acquisition_time_stamp=10 * i) for i in range(8)]


@pytest.fixture
def recordings(tmp_path) -> Recordings:
    return Recordings(tmp_path / "recordings")


def record(recordings: Recordings, *messages, session: int = 7) -> Path:
    journal = recordings.begin(session)
    journal.write(recorded(*messages))
    journal.close()
    return journal.path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_h5_file_holds_the_stream_as_the_ismrmrd_package_reads_it(recordings, monkeypatch):
    monkeypatch.setattr(file_writer, "BLOCK_ITEMS", 3)
    acquisitions = [*READOUTS, trajectory_acquisition(8), acquisition(9, channels=5, samples=3)]
    waves = [waveform(i, time_stamp=10 * i + 5) for i in range(4)]
    acquisitions[2].user_float[3], acquisitions[2].position[1], acquisitions[2].idx.user[5] = 1.5, -2.5, 11
    sent = [item for pair in zip(acquisitions, waves, strict=False) for item in pair] + acquisitions[4:]
    path = recordings.finish(record(recordings, *OPENING, *sent, Text("bye"), Close()))
    with closing(ismrmrd.Dataset(str(path), "dataset", create_if_needed=False)) as dataset:
        assert dataset.read_xml_header().decode() == HEADER_XML
        assert dataset.number_of_acquisitions() == len(acquisitions)
        assert [dataset.read_acquisition(i) for i in range(len(acquisitions))] == acquisitions
        assert [dataset.read_waveform(i) for i in range(dataset.number_of_waveforms())] == waves
        kept = {name: list(dataset._dataset[name]) for name in ("config_file", "parameters", "texts")}
    assert kept == {"config_file": [b"preview"], "parameters": [OPENING[2].text.encode()], "texts": [b"bye"]}
    with open_raw(path) as raw:
        assert (raw.config, raw.parameters, raw.dropped) == (OPENING[0], OPENING[2].text, None)
    assert names(recordings.folder) == [path.name]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.peers
@pytest.mark.skipif(shutil.which("ismrmrd_info") is None, reason="ismrmrd-tools are not installed")
def test_the_h5_file_is_read_by_the_tools_of_ismrmrd(recordings):
    path = recordings.finish(record(recordings, *OPENING, *READOUTS, waveform(1), Close()))
    done = subprocess.run(["ismrmrd_info", str(path)], capture_output=True, text=True, check=True)
    assert "8" in done.stdout


def test_journal_and_h5_file_give_the_images_of_the_original(recordings, tmp_path, site):
    with closing(ismrmrd.Dataset(str(tmp_path / "original.h5"), "dataset")) as dataset:
        dataset.write_xml_header(HEADER_XML.encode())
        for item in READOUTS:
            dataset.append_acquisition(item)
    journal = record(recordings, *OPENING, *READOUTS, Close())
    (copy := tmp_path / "copy.mrd").write_bytes(journal.read_bytes())

    def images(path, pipeline, parameters=None):
        came, notes = [], []
        with open_raw(path) as raw:
            job = Replay(raw=path, pipeline=pipeline, parameters=parameters or {})
            replay_here(job, raw, site, came.append, notes.append, lambda items, total: items)
        assert any(note.startswith("as recorded: pipeline preview, ImageExport.data_type=") for note in notes) != bool(
            pipeline
        )
        return [(image.data_type, image.data.tobytes(), bytes(image.getHead())) for image in came]

    expected = images(tmp_path / "original.h5", "preview", {"ImageExport.data_type": "float32"})
    assert expected
    assert images(copy, None) == images(recordings.finish(journal), None) == expected
    assert images(copy, None, {"ImageExport.data_type": "uint16"}) != expected  # --set goes before what was recorded


def test_what_the_client_asked_for_is_asked_of_another_server(recordings, monkeypatch):
    asked = []

    def stream(address, config, header, items, sink, note, parameters, *_):
        asked.append((config, header, list(items), parameters))

    monkeypatch.setattr(replay, "stream", stream)
    path = record(recordings, *OPENING, *READOUTS, Close())
    with open_raw(path) as raw:
        for settings in ({}, {"ImageExport.data_type": "uint16", "CoilMaps.kernel": "3"}):
            job = Replay(raw=path, pipeline=None, parameters=settings)
            replay_to(("127.0.0.1", 1), job, raw, print, print, lambda items, total: items, 1.0)
            expected = {"ImageExport.data_type": "float32", **settings}
            assert asked.pop() == (ConfigFile("preview"), HEADER_XML, READOUTS, expected)


def test_a_recorded_configuration_may_not_set_paths(recordings, site):
    text = configuration("FieldMap").replace(
        '<gadget name="FieldMap"/>', '<gadget name="FieldMap"><property name="file" value="/etc/passwd"/></gadget>'
    )
    for opening in ([ConfigText(text), OPENING[1]], [ConfigText(configuration("FieldMap")), OPENING[1]]):
        parameters = Text('{"parameters": {"FieldMap.file": "/etc/passwd"}}')
        path = record(recordings, *opening, parameters, *READOUTS, Close())
        with open_raw(path) as raw, pytest.raises(PipelineError, match="recorded.*file"):
            replay_here(Replay(raw=path, pipeline=None), raw, site, print, print, lambda items, total: items)


def test_replay_tells_what_is_missing_and_asks_for_a_pipeline_where_none_is_recorded(recordings, tmp_path):
    whole = record(recordings, *OPENING, *READOUTS)
    os.truncate(whole, whole.stat().st_size - 1)
    arguments = ["replay", str(whole), "--png", str(tmp_path / "png")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"{whole} is not complete: its last 597 bytes are part of a message: 255 of 256 bytes of" in done.output
    without = record(recordings, *OPENING[1:], *READOUTS)
    done = CliRunner().invoke(main, ["replay", str(without), "--png", str(tmp_path / "png2")])
    assert done.exit_code == 1
    assert f"{without}: does not say which pipeline is meant; name one with -p" in done.output


def test_a_message_that_came_in_part_is_all_that_is_left_out_and_told(recordings):
    journal = record(recordings, *OPENING, *READOUTS)
    os.truncate(journal, journal.stat().st_size - 1)
    path = recordings.finish(journal)
    assert not journal.exists()
    with open_raw(path) as raw:
        assert list(raw.items()) == READOUTS[:-1]
        assert raw.dropped == "its last 597 bytes are part of a message: 255 of 256 bytes of acquisition 7"


@pytest.mark.parametrize(
    ("messages", "tail", "reason"),
    [
        ([*OPENING, READOUTS[0]], b"\x07\x00", "its last 2 bytes cannot be read: message id 7 .*; it stays a journal"),
        ([*OPENING, READOUTS[0], Close()], b"more", "its last 4 bytes came after .*; it stays a journal"),
        (
            [*OPENING, ismrmrd.Image.from_array(np.ones((1, 1, 2, 2), np.float32), transpose=False), Close()],
            b"",
            "holds 1 images, which would not be replayed from an .h5 file; it stays a journal",
        ),
        ([], b"GET / HTTP/1.1\r\n" + bytes(1 << 16), "there is no MRD header .*; it stays a journal"),
    ],
)
def test_what_an_h5_file_cannot_hold_stays_a_journal(recordings, messages, tail, reason):
    journal = record(recordings, *messages)
    journal.write_bytes(journal.read_bytes() + tail)
    before = journal.read_bytes()
    with pytest.raises(FileError, match=f"{journal.name}: {reason}"):
        recordings.finish(journal)
    assert recordings.recover() == [journal]
    assert journal.read_bytes() == before
    assert names(recordings.folder) == [journal.name]


@pytest.mark.parametrize("messages", [[], [ConfigFile("no_such_pipeline")], [ConfigFile("preview"), Close()]])
def test_nothing_is_kept_of_clients_that_left_before_the_header(recordings, messages):
    journal = record(recordings, *messages)
    assert recordings.finish(journal) is None
    assert names(recordings.folder) == []


@pytest.mark.parametrize("step", ["fsync", "rename", "items"])
def test_nothing_but_success_deletes_a_journal(recordings, monkeypatch, step):
    def fail(*_):
        raise OSError(5, "Input/output error")

    journal = record(recordings, *OPENING, *READOUTS, Close())
    before = journal.read_bytes()
    with monkeypatch.context() as broken:
        owner = {"fsync": os, "rename": Path, "items": recordings_module.JournalFile}[step]
        broken.setattr(owner, step, fail)
        with pytest.raises(FileError, match="stays a journal: .*Input/output error"):
            recordings.finish(journal)
    assert journal.read_bytes() == before
    assert names(recordings.folder) == [journal.name]
    assert recordings.recover() == []
    assert names(recordings.folder) == [journal.with_suffix(".h5").name]


FINISHER = """
import resource, sys
from pipelines.recordings import main
size = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, resource.RLIM_INFINITY))
assert main(sys.argv[1], sys.argv[2]) == 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
import pathlib
assert [path.name for path in pathlib.Path(sys.argv[1]).iterdir()] == [sys.argv[2]]
assert main(sys.argv[1], sys.argv[2]) == 0
assert "torch" not in sys.modules
"""


def test_its_own_process_needs_no_torch_and_a_full_disk_there_costs_nothing(recordings):
    journal = record(recordings, *OPENING, *[acquisition(i, 8, 1000) for i in range(20)], Close())
    arguments = [str(recordings.folder), journal.name, str(journal.stat().st_size)]
    done = subprocess.run([sys.executable, "-c", FINISHER, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{journal}: cannot be finished, and stays a journal: " in done.stderr
    with open_raw(journal.with_suffix(".h5")) as raw:
        assert list(raw.items()) == [acquisition(i, 8, 1000) for i in range(20)]


def test_what_a_killed_server_left_is_finished_and_what_another_one_writes_is_not(recordings):
    left = record(recordings, *OPENING, *READOUTS)
    with closing(recordings.begin(8)) as journal:
        journal.write(recorded(*OPENING, READOUTS[0]))
        assert [entry.state for entry in recordings.entries()] == ["journal", "recording"]
        assert Recordings(recordings.folder).recover() == []
        assert [entry.state for entry in recordings.entries()] == ["finished", "recording"]
        journal.write(recorded(*READOUTS[1:], Close()))
    assert not left.exists()
    with open_raw(recordings.finish(journal.path)) as raw:
        assert raw.acquisitions == 8


def test_two_that_finish_the_same_journal_do_it_once(recordings):
    journal = record(recordings, *OPENING, *READOUTS, Close())
    path = recordings.finish(journal)
    before = path.stat().st_ino
    assert recordings.finish(journal) == path
    assert path.stat().st_ino == before
    with pytest.raises(FileError, match="No such file"):
        recordings.finish(journal.with_name("20261122-101503-s0001.mrd"))


def test_names_tell_time_and_session_and_never_collide(recordings):
    begun = datetime.now(timezone.utc).replace(microsecond=0)
    paths = [record(recordings, *OPENING, *READOUTS[:1], Close()) for _ in range(3)]
    finished = recordings.finish(paths[0])
    paths += [record(Recordings(recordings.folder), *OPENING, Close())]  # after a restart
    assert len({path.stem for path in paths}) == 4
    assert finished.exists()
    for entry in recordings.entries():
        assert begun <= entry.when <= begun + timedelta(seconds=5)
        assert "-s0007" in entry.path.name


def test_entries_tell_what_there_is(recordings):
    first = recordings.finish(record(recordings, *OPENING, *READOUTS, Close(), session=1))
    second = record(recordings, ConfigText(configuration("Count")), *OPENING[1:], *READOUTS[:3], session=2)
    record(recordings, session=3)
    (recordings.folder / "notes.txt").write_text("mine")
    entries = recordings.entries()
    assert [(entry.state, entry.acquisitions, entry.pipeline) for entry in entries] == [
        ("finished", 8, "preview"),
        ("journal", 3, "as text"),
        ("journal", None, ""),
    ]
    assert [entry.bytes for entry in entries[:2]] == [first.stat().st_size, second.stat().st_size]
    assert [entry.problem for entry in entries[:2]] == [None, "it ends without the client's close"]
    assert entries[2].problem.startswith("there is no MRD header")


@pytest.fixture
def old(recordings) -> list[Path]:
    """Finished recordings of 5, 3 and 1 days ago, 1000 bytes each; an old journal, and others' files, beside them."""
    recordings.folder.mkdir()
    now = datetime.now(timezone.utc)
    paths = [recordings.folder / f"{now - timedelta(days=days):%Y%m%d-%H%M%S}-s0001.h5" for days in (5, 3, 1)]
    for path in paths:
        path.write_bytes(bytes(1000))
    paths[0].with_suffix(".mrd").write_bytes(bytes(5000))
    (recordings.folder / "20200101-000000.h5").write_bytes(bytes(5000))
    (recordings.folder / "20200101-000000-s0001.h5").symlink_to("20200101-000000.h5")
    (recordings.folder / "20200101-000000-s0002.h5").mkdir()
    return paths


@pytest.mark.parametrize(
    ("days", "size", "removed"),
    [(None, None, 0), (4, None, 1), (0.5, None, 3), (None, 2500, 1), (None, 2000, 1), (None, 0, 2), (4, 3000, 1)],
)
def test_the_oldest_finished_recordings_are_removed_and_nothing_else(recordings, old, caplog, days, size, removed):
    before = names(recordings.folder)
    with caplog.at_level(logging.INFO, "spinstream"):
        assert sorted(Recordings(recordings.folder, days, size).prune()) == old[:removed]
    assert names(recordings.folder) == sorted(set(before) - {path.name for path in old[:removed]})
    assert [path.name in caplog.text for path in old] == [index < removed for index in range(3)]


def test_the_command_lists_finishes_and_prunes(recordings):
    finished = record(recordings, *OPENING, *READOUTS, session=1).with_suffix(".h5").name
    stays = record(recordings, *OPENING, session=2)
    stays.write_bytes(stays.read_bytes() + b"\x07\x00")

    def run(*options):
        done = CliRunner().invoke(main, ["recordings", str(recordings.folder), *options])
        return done.exit_code, done.output

    status, output = run()
    assert status == 0
    assert [line.split()[1] for line in output.splitlines() if not line.startswith(" ")] == ["journal", "journal"]
    status, output = run("--finish")
    assert status == 1
    assert f"{finished} " in output
    assert "preview" in output
    assert "1 journals could not be finished" in output
    status, output = run("--prune-days", "0")
    assert status == 0
    assert f"{finished} removed" in output
    assert names(recordings.folder) == [stays.name]


def test_a_folder_that_is_not_there_yet_holds_nothing(recordings):
    assert recordings.entries() == recordings.recover() == recordings.prune() == []


def test_listing_does_not_disturb_a_writer(recordings):
    with closing(recordings.begin(1)) as journal:
        recordings.entries()
        with journal.path.open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
