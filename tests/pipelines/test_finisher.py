"""Journals become .h5 files in their turn, and old recordings make room when it is needed."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines import recordings as recordings_module
from pipelines.cli import main
from pipelines.errors import FileError
from pipelines.recordings import Recordings
from pipelines.streams import file_writer
from pipelines.streams import finisher as finisher_module
from pipelines.streams.finisher import Finisher
from pipelines.wire import Close, ConfigFile, HeaderText

from mrd_items import HEADER_XML, acquisition
from recorded import recorded

MESSAGES = [ConfigFile("preview"), HeaderText(HEADER_XML), acquisition(0), Close()]


@pytest.fixture
def recordings(tmp_path) -> Recordings:
    return Recordings(tmp_path, keep_days=30)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Journals are converted in this process, whose disk a test may fill."""

    def converted(finisher: Finisher, journal: Path) -> bool:
        try:
            finisher._recordings.finish(journal)
        except FileError as error:
            logging.getLogger("spinstream").error("%s", error)
            finisher._failed.add(journal)
            return False
        return True

    monkeypatch.setattr(Finisher, "_converted", converted)


@pytest.fixture
def full(monkeypatch):
    """The disk is full as long as one of these files is there."""
    files = []

    def writer(part: Path) -> file_writer.RawFileWriter:
        if any(file.exists() for file in files):
            raise OSError(28, "No space left on device")
        return file_writer.RawFileWriter(part)

    monkeypatch.setattr(recordings_module, "RawFileWriter", writer)
    return files


def old(recordings: Recordings, days: int = 40, size: int = 1000) -> Path:
    path = recordings.folder / f"{datetime.now(timezone.utc) - timedelta(days=days):%Y%m%d-%H%M%S}-s0001.h5"
    path.write_bytes(bytes(size))
    return path


def journal(recordings: Recordings) -> Path:
    with closing(recordings.begin(7)) as journal:
        journal.write(recorded(*MESSAGES))
    return journal.path


def becomes(condition, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def test_what_is_too_old_is_removed_at_the_start(recordings):
    aged, kept = old(recordings), old(recordings, days=20)
    with closing(Finisher(recordings)):
        assert not aged.exists()
        assert kept.exists()


def test_on_a_full_disk_old_recordings_make_room_for_what_a_client_has_just_sent(recordings, full):
    with closing(Finisher(recordings)) as finisher:
        full.append(old(recordings))
        path = journal(recordings)
        finisher.finish(path)
        assert becomes(path.with_suffix(".h5").exists)
        assert not full[0].exists()


def test_room_is_made_for_the_size_of_the_recording_that_comes(tmp_path, full):
    path = journal(Recordings(tmp_path))
    recordings = Recordings(tmp_path, keep_bytes=2000 + path.stat().st_size // 2)
    full.append(old(recordings, days=3))
    old(recordings, days=1)
    with closing(Finisher(recordings)):
        assert becomes(path.with_suffix(".h5").exists)
        assert not full[0].exists()


def test_the_command_makes_room_before_it_finishes(recordings, full):
    full.append(old(recordings))
    path = journal(recordings)
    done = CliRunner().invoke(main, ["recordings", str(recordings.folder), "--finish", "--prune-days", "30"])
    assert done.exit_code == 0, done.output
    assert f"{full[0].name} removed\n" in done.output
    assert path.with_suffix(".h5").exists()


def test_each_hour_what_has_grown_old_is_removed_and_what_failed_is_tried_again(
    recordings, full, monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr(finisher_module, "TIDY_SECONDS", 0.05)
    (others := tmp_path / "of another program").touch()
    full.append(others)
    path = journal(recordings)
    with closing(Finisher(recordings)):
        aged = old(recordings)
        assert becomes(lambda: not aged.exists())
        assert becomes(lambda: "No space left on device" in caplog.text)
        assert path.exists()
        others.unlink()
        assert becomes(path.with_suffix(".h5").exists)


def test_a_folder_that_lets_nothing_be_removed_stops_no_server(recordings, monkeypatch, caplog):
    aged = old(recordings)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with closing(Finisher(recordings)):
        assert aged.exists()
        assert "old recordings cannot be removed: " in caplog.text
