import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import closing
from io import FileIO

import ismrmrd
import numpy as np
import pytest

from pipelines.errors import FileError
from pipelines.streams import journal as journal_module
from pipelines.streams.file import RawFile, open_raw
from pipelines.streams.journal import SYNC_SECONDS, Journal, JournalFile, NothingRecorded
from pipelines.wire import Close, ConfigFile, ConfigText, HeaderText, Text

from mrd_items import acquisition
from recorded import recorded, trajectory_acquisition, waveform

HEADER = HeaderText("<ismrmrdHeader/>")
OPENING = [ConfigText("<configuration/>"), HEADER, Text('{"parameters": {}}')]


def image() -> ismrmrd.Image:
    return ismrmrd.Image.from_array(np.ones((1, 1, 2, 2), np.float32), transpose=False, image_index=5)


def write(path, *parts: bytes):
    path.write_bytes(b"".join(parts))
    return path


def test_what_was_sent_is_read_in_its_order(tmp_path):
    sent = [acquisition(0), waveform(1), trajectory_acquisition(2), image(), acquisition(3)]
    path = write(tmp_path / "a.mrd", recorded(ConfigFile("cg_sense"), *OPENING[1:], *sent, Text("bye"), Close()))
    with open_raw(path) as raw:
        assert isinstance(raw, JournalFile)
        assert (raw.header_xml, raw.config, raw.parameters) == (HEADER.xml, ConfigFile("cg_sense"), OPENING[2].text)
        assert (raw.acquisitions, raw.waveforms, raw.images, raw.texts) == (3, 1, 1, ["bye"])
        assert raw.dropped is None
        assert list(raw.items()) == sent
        assert list(raw.items()) == sent  # and again


def test_cut_at_any_byte_it_gives_all_that_was_whole_before(tmp_path):
    items = [acquisition(0, 1, 4), waveform(1), trajectory_acquisition(2, 1, 4), acquisition(3, 1, 4)]
    messages = [*OPENING, *items, Close()]
    ends = np.cumsum([len(recorded(message)) for message in messages])
    whole = recorded(*messages)
    path = write(tmp_path / "a.mrd", whole)
    for length in range(len(whole), -1, -1):
        os.truncate(path, length)
        there = int(np.searchsorted(ends, length, "right"))
        if there < 2:
            with pytest.raises(NothingRecorded, match="there is no MRD header in this recording"):
                JournalFile(path)
            continue
        expected = messages[3:there] if there < len(messages) else items
        with JournalFile(path) as raw:
            assert list(raw.items()) == expected
            assert raw.acquisitions == sum(isinstance(item, ismrmrd.Acquisition) for item in expected)
            assert raw.readable
            if length == len(whole):
                assert raw.dropped is None
            elif length == ends[there - 1]:
                assert raw.dropped == "it ends without the client's close"
            else:
                missing = length - ends[there - 1]
                assert raw.dropped.startswith(f"its last {missing} bytes are part of a message: ")


def test_an_image_that_is_cut(tmp_path):
    path = write(tmp_path / "a.mrd", recorded(*OPENING, acquisition(0), image())[:-1])
    with JournalFile(path) as raw:
        assert (raw.acquisitions, raw.images) == (1, 0)
        assert list(raw.items()) == [acquisition(0)]


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (b"\x00\x00garbage", "its last 9 bytes cannot be read: message id 0 is not known here"),
        (recorded(HEADER), "bytes cannot be read: a header \\(3\\) must not come here"),
        (recorded(Close()) + b"more", "its last 4 bytes came after the client's close"),
    ],
)
def test_what_is_no_message_is_dropped_and_told(tmp_path, tail, reason):
    path = write(tmp_path / "a.mrd", recorded(*OPENING, acquisition(0)), tail)
    with JournalFile(path) as raw:
        assert list(raw.items()) == [acquisition(0)]
        assert not raw.readable
        with pytest.raises(AssertionError, match=reason):
            raise AssertionError(raw.dropped)


def test_a_length_that_would_swallow_the_rest_is_not_taken_for_a_cut(tmp_path):
    liar = bytearray(recorded(acquisition(1)))
    head = ismrmrd.AcquisitionHeader.from_buffer(liar, 2)
    head.active_channels, head.number_of_samples = 50000, 60000
    del head
    path = write(tmp_path / "a.mrd", recorded(*OPENING, acquisition(0)), liar)
    with JournalFile(path) as raw:
        assert (raw.acquisitions, raw.readable) == (1, True)
    os.truncate(path, path.stat().st_size + journal_module.LONGEST_PART)  # as if many more had come
    with JournalFile(path) as raw:
        assert (raw.acquisitions, raw.readable) == (1, False)


def test_a_disk_that_cannot_be_read_is_not_taken_for_a_cut(tmp_path, monkeypatch):
    class Broken(FileIO):
        def readinto(self, buffer):
            if self.tell():
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(buffer)

    monkeypatch.setattr(journal_module, "FileIO", Broken)
    path = write(tmp_path / "a.mrd", recorded(*OPENING, Text("a" * 1000), Close()))
    with pytest.raises(FileError, match=r"a\.mrd: cannot be read: Input/output error"):
        JournalFile(path)


@pytest.mark.parametrize(
    ("start", "nothing"),
    [
        (b"GET / HTTP/1.1\r\n", True),
        (b"GET / HTTP/1.1\r\n" + bytes(1 << 16), False),
        (recorded(ConfigFile("a"), acquisition(0)), False),
    ],
    ids=["a request", "much of what nobody knows", "data"],
)
def test_something_else_instead_of_a_header(tmp_path, start, nothing):
    with pytest.raises(FileError, match=r"a\.mrd: there is no MRD header .* cannot be read") as caught:
        JournalFile(write(tmp_path / "a.mrd", start))
    assert isinstance(caught.value, NothingRecorded) == nothing


def test_an_acquisition_without_samples_is_told_and_what_came_before_it_read(tmp_path):
    bad = bytearray(recorded(acquisition(1)))
    head = ismrmrd.AcquisitionHeader.from_buffer(bad, 2)
    head.number_of_samples = 0
    del head
    path = write(tmp_path / "a.mrd", recorded(*OPENING, acquisition(0)), bad[: 2 + 340], recorded(Close()))
    with JournalFile(path) as raw:
        assert list(raw.items()) == [acquisition(0)]
        assert not raw.readable
        assert raw.dropped == "its last 344 bytes cannot be read: acquisition 1 has no samples"


def test_the_content_decides_how_a_file_is_read(tmp_path):
    path = write(tmp_path / "a.h5", recorded(*OPENING))
    with open_raw(path) as raw:
        assert isinstance(raw, JournalFile)
    with pytest.raises(FileError, match="is a journal, which has no groups, so no 'other' either"):
        open_raw(path, "other")
    with closing(ismrmrd.Dataset(str(tmp_path / "b.mrd"), "dataset")) as dataset:
        dataset.write_xml_header(HEADER.xml.encode())
        dataset.append_acquisition(acquisition(0))
    with open_raw(tmp_path / "b.mrd") as raw:
        assert isinstance(raw, RawFile)
    with pytest.raises(FileError, match=r"c\.mrd: cannot be read: No such file"):
        open_raw(tmp_path / "c.mrd")


def test_it_is_new_and_for_its_owner_only(tmp_path):
    path = tmp_path / "recordings" / "a.mrd"
    with closing(Journal(path)) as journal:
        journal.write(b"abc")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with pytest.raises(FileExistsError):
        Journal(path)
    assert path.read_bytes() == b"abc"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file/a\.mrd: cannot be recorded to: (File exists|Not a directory)"):
        Journal(tmp_path / "file" / "a.mrd")


def test_it_is_locked_until_it_is_closed(tmp_path):
    journal = Journal(tmp_path / "a.mrd")
    with (tmp_path / "a.mrd").open("rb") as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        journal.close()
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_who_removes_it_before_it_is_locked_costs_no_byte(tmp_path, monkeypatch):
    path = tmp_path / "a.mrd"
    removed = []

    def remove_first(descriptor, how, flock=fcntl.flock):
        if not removed:
            path.unlink()
            removed.append(path)
        flock(descriptor, how)

    monkeypatch.setattr(journal_module.fcntl, "flock", remove_first)
    with closing(Journal(path)) as journal:
        journal.write(b"abc")
    assert removed
    assert path.read_bytes() == b"abc"


def test_all_bytes_are_written_however_few_the_disk_takes_at_once(tmp_path, monkeypatch):
    write_some = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write_some(file, bytes(data[:7])))
    data = np.arange(100, dtype=np.uint32)
    with closing(Journal(tmp_path / "a.mrd")) as journal:
        journal.write(data.data)
        journal.write(bytearray(b"end"))
        assert journal.size == 403
    assert (tmp_path / "a.mrd").read_bytes() == data.tobytes() + b"end"


def test_a_full_disk_is_told_once_and_what_was_whole_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "a.mrd"
    write_some = os.write
    room = 5000

    def write_until_full(file, data):
        written = write_some(file, data[: room - path.stat().st_size])
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written

    monkeypatch.setattr(os, "write", write_until_full)
    with closing(Journal(path)) as journal:
        journal.write(recorded(*OPENING))
        told = []
        for i in range(20):
            try:
                journal.write(recorded(acquisition(i)))
            except FileError as error:
                told.append(str(error))
            assert journal.stopped == bool(told)
    assert told == [f"{path}: nothing more is recorded after 5000 bytes: disk full (No space left on device)"]
    whole = (room - len(recorded(*OPENING))) // len(recorded(acquisition(0)))
    with JournalFile(path) as raw:
        assert list(raw.items()) == [acquisition(i) for i in range(whole)]


def test_a_disk_that_breaks_after_the_write_is_told_at_the_next(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(Journal(tmp_path / "a.mrd")) as journal:
        monkeypatch.setattr(os, "fdatasync", fail)
        journal.write(b"abc")
        journal.sync()
        with pytest.raises(FileError, match="nothing more is recorded after 3 bytes: Input/output error"):
            journal.write(b"def")
        journal.write(b"def")
        assert journal.size == 3


def test_a_disk_that_breaks_at_the_end_is_told_at_the_close(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = Journal(tmp_path / "a.mrd")
    journal.write(b"abc")
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(FileError, match="after 3 bytes: Input/output error"):
        journal.close()
    journal.close()


def test_each_write_is_on_disk_within_a_second(tmp_path, monkeypatch):
    synced = threading.Event()
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: synced.set())
    with closing(Journal(tmp_path / "a.mrd")) as journal, closing(Journal(tmp_path / "b.mrd")):
        journal.write(b"abc")
        assert synced.wait(2 * SYNC_SECONDS)
        synced.clear()
        assert not synced.wait(1.5 * SYNC_SECONDS)  # nothing changed
        assert sum(thread.name == "journals" for thread in threading.enumerate()) == 1


WRITER = """
import sys
from pathlib import Path
from pipelines.streams.journal import Journal
journal, message = Journal(Path(sys.argv[1])), bytes.fromhex(sys.argv[3])
journal.write(bytes.fromhex(sys.argv[2]))
for i in range(10**9):
    journal.write(message)
    print(i + 1, flush=True)
    assert "torch" not in sys.modules
"""


def test_kill_9_costs_nothing_that_was_written(tmp_path):
    path = tmp_path / "a.mrd"
    arguments = [str(path), recorded(*OPENING).hex(), recorded(acquisition(0)).hex()]
    with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True) as writer:
        for _ in range(100):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        said = int((writer.stdout.read() or "100\n").split()[-1])
    assert writer.returncode == -signal.SIGKILL
    with JournalFile(path) as raw:
        assert raw.acquisitions >= said >= 100
        assert all(item == acquisition(0) for item in raw.items())
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the dead hold no lock
