import shutil
import threading
from contextlib import closing
from pathlib import Path

import ismrmrd
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.errors import FileError
from pipelines.replay_folder import Replayed, raw_files, replay_files, table

from mrd_items import HEADER_XML, acquisition


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def folder(tmp_path):
    """Two scans, and a file that is none."""
    folder = tmp_path / "raw"
    folder.mkdir()
    with closing(ismrmrd.Dataset(str(folder / "a.h5"), "dataset")) as dataset:
        dataset.write_xml_header(HEADER_XML.encode())
        for i in range(8):
            dataset.append_acquisition(acquisition(i))
    shutil.copy(folder / "a.h5", folder / "c.h5")
    (folder / "b.h5").write_text("no scan")
    (folder / "notes.txt").write_text("no scan either")
    return folder


def test_each_file_gives_images_of_its_name_and_one_bad_file_stops_none_and_shows_in_the_status(folder, tmp_path):
    out, png = tmp_path / "out", tmp_path / "png"
    status, output = run("replay", folder, "-p", "preview", "-o", out, "--png", png)
    assert status == 1
    assert sorted(path.name for path in out.iterdir()) == ["a.h5", "c.h5"]
    assert sorted(path.name for path in png.iterdir()) == ["a", "c"]
    assert "note: a.h5: 1 images" in output
    lines = output.splitlines()
    start = next(number for number, text in enumerate(lines) if text.split() == ["file", "images", "seconds"])
    rows = [text.split() for text in lines[start + 1 : start + 4]]
    assert [row[:2] for row in rows] == [["a.h5", "1"], ["b.h5", "0"], ["c.h5", "1"]]
    assert "failed:" in rows[1]
    assert lines[-1] == "Error: 1 of 3 files failed: b.h5"


def test_a_folder_of_good_files_succeeds(folder, tmp_path):
    (folder / "b.h5").unlink()
    assert run("replay", folder, "-p", "preview", "-o", tmp_path / "out")[0] == 0
    status, output = run("replay", folder, "-p", "preview", "-o", tmp_path / "out")
    assert status == 1  # nothing is replaced without --overwrite
    assert "2 of 2 files failed" in output


@pytest.mark.parametrize(
    ("raw", "output", "message"),
    [
        ("raw", "raw", "is the raw folder itself"),
        ("raw", "raw/notes.txt", "is a folder, so expected a folder, got a file"),
        ("raw/a.h5", "raw", "is a file, so expected a file, got a folder"),
    ],
)
def test_images_of_a_folder_go_into_another_and_of_a_file_into_a_file(folder, monkeypatch, raw, output, message):
    monkeypatch.chdir(folder.parent)
    status, said = run("replay", raw, "-p", "preview", "-o", output)
    assert (status, message in said) == (2, True), said


def test_a_folder_without_raw_data_is_refused(tmp_path):
    with pytest.raises(FileError, match=r"holds no raw data: no file ends in \.h5 or \.mrd"):
        raw_files(tmp_path)


def test_a_journal_beside_its_finished_file_is_not_replayed_twice(tmp_path):
    for name in ("a.h5", "a.mrd", "b.mrd"):
        (tmp_path / name).touch()
    assert raw_files(tmp_path) == {"a": tmp_path / "a.h5", "b": tmp_path / "b.mrd"}


def test_files_are_replayed_several_at_a_time_and_listed_in_their_order():
    together = threading.Barrier(2, timeout=5)

    def replay(name, path):
        together.wait()
        return len(name)

    files = {name: Path(f"{name}.h5") for name in ("b", "aa")}
    done = []
    results = replay_files(files, replay, 2, done.append)
    assert [(result.file, result.images, result.error) for result in results] == [("b.h5", 1, None), ("aa.h5", 2, None)]
    assert sorted(done, key=str) == sorted(results, key=str)


def test_a_defect_is_told_as_one(caplog):
    def replay(name, path):
        raise ZeroDivisionError("division by zero")

    (result,) = replay_files({"a": Path("a.h5")}, replay, 1, print)
    assert result.error == "a defect of spinstream, please report it: ZeroDivisionError: division by zero"


def test_the_table_has_a_line_for_each_file():
    results = [Replayed("a.h5", 20, 3.14, None), Replayed("longer.h5", 0, 0.1, "no\nmore")]
    assert [*table(results)] == [
        "file       images  seconds",
        "a.h5           20      3.1",
        "longer.h5       0      0.1  failed: no",
    ]


def test_a_cluster_that_is_not_there_is_named(folder, tmp_path):
    status, output = run(
        "replay", folder / "a.h5", "-p", "preview", "-o", tmp_path / "x.h5", "--cluster", "nowhere://x"
    )
    assert status == 1
    assert "there is no cluster at nowhere://x" in output


def test_a_cluster_is_not_for_clients_of_a_server(folder, tmp_path):
    arguments = ["-p", "preview", "-o", tmp_path / "x.h5", "--cluster", "tcp://a:1", "--to", "b:2"]
    assert run("replay", folder / "a.h5", *arguments)[0] == 2
