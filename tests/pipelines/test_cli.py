import re
import shutil
import threading
from contextlib import closing
from importlib.metadata import EntryPoint, entry_points

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.commands import serve
from pipelines.definition import DEFINITIONS, available_definitions
from pipelines.registry import GROUP, installed_gadgets
from pipelines.streams.server import Server

from mrd_items import HEADER_XML, acquisition, configuration


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def raw(tmp_path):
    import ismrmrd

    path = tmp_path / "raw.h5"
    with closing(ismrmrd.Dataset(str(path), "dataset")) as dataset:
        dataset.write_xml_header(HEADER_XML.encode())
        for i in range(8):
            dataset.append_acquisition(acquisition(i))
    return path


@pytest.mark.parametrize("name", available_definitions([DEFINITIONS]))
def test_validate_shipped_pipelines(name):
    status, output = run("validate", name)
    assert status == 0
    assert output.startswith(f"{name}: NoisePrewhitening -> ")


def test_validate_names_file_line_and_nearest(tmp_path):
    path = tmp_path / "my.xml"
    path.write_text((DEFINITIONS / "cg_sense.xml").read_text().replace("CoilMaps", "CoilMap"))
    line = 1 + path.read_text().splitlines().index('                <gadget name="CoilMap"/>')
    status, output = run("validate", path)
    assert status == 1
    assert f"my.xml:{line}: no gadget is called 'CoilMap'; did you mean 'CoilMaps'?" in output


def test_validate_with_settings():
    assert run("validate", "cg_sense", "--set", "CgSense.iterations=3")[0] == 0
    status, output = run("validate", "cg_sense", "--set", "CgSense.iterations=many")
    assert status == 1
    assert "--set: CgSense.iterations: expected a whole number" in output
    assert run("validate", "cg_sense", "--set", "CgSense.iterations")[0] == 2


def test_gadgets_and_every_declared_property_are_listed():
    status, output = run("gadgets")
    assert status == 0
    for name, gadget in installed_gadgets().items():
        assert name in output
        assert gadget.summary(), name
        status, properties = run("gadgets", name)
        assert status == 0
        for key, declared in gadget.properties().items():
            assert f"  {key} = {declared.default_text}" in properties
            assert declared.meaning.strip(".") == declared.meaning != "", (name, key)
            assert declared.default is None or declared.parse(declared.default_text) == declared.default


def test_an_unknown_gadget_gets_the_nearest():
    status, output = run("gadgets", "CGSense")
    assert status == 1
    assert "did you mean 'CgSense'?" in output


def test_pipelines_are_exported(tmp_path):
    status, output = run("pipelines", "--export", tmp_path / "config")
    assert status == 0
    exported = sorted(path.name for path in (tmp_path / "config").iterdir())
    assert exported == sorted(path.name for path in DEFINITIONS.glob("*.xml"))
    assert {"cg_sense.xml", "diffusion.xml", "field_map.xml", "preview.xml"} <= set(exported)
    assert "cg_sense" in output


def test_replay_writes_images_and_says_how_many(raw, tmp_path):
    status, output = run("replay", raw, "-p", "preview", "-o", tmp_path / "out.h5", "--png", tmp_path / "png")
    assert status == 0, output
    assert "1 images" in output
    assert len(list((tmp_path / "png").iterdir())) == 1


def test_replay_to_a_server(raw, tmp_path, address):
    to = "{}:{}".format(*address)
    status, output = run("replay", raw, "-p", "preview", "-o", tmp_path / "out.h5", "--to", to)
    assert status == 0, output
    assert "note: times: NoisePrewhitening" in output


def test_replay_without_images_fails(raw, tmp_path, address):
    pipeline = tmp_path / "count.xml"
    pipeline.write_text(configuration("Count"))
    status, output = run("replay", raw, "-p", pipeline, "-o", tmp_path / "o.h5", "--to", "{}:{}".format(*address))
    assert status == 1
    assert "no image came out" in output
    assert "note: counted 8" in output


def test_replay_reports_a_failing_server(raw, tmp_path, address):
    pipeline = tmp_path / "fail.xml"
    pipeline.write_text(configuration("Fail"))
    status, output = run("replay", raw, "-p", pipeline, "-o", tmp_path / "o.h5", "--to", "{}:{}".format(*address))
    assert status == 1
    assert "Error: Fail failed on acquisition 2 (slice 0, step 2): the coil is on fire" in output


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["-p", "preview"], 2, "nowhere to put the images"),
        (["-p", "preview", "-o", "x.h5", "--to", "nowhere"], 2, "expected HOST:PORT"),
        (["-p", "preview", "-o", "x.h5", "--to", "127.0.0.1:1", "--device", "cpu"], 2, "the server's to choose"),
        (["-p", "preview", "-o", "x.h5", "--to", "127.0.0.1:1"], 1, "no server answers at 127.0.0.1:1"),
        (["-p", "previw", "-o", "x.h5"], 1, "did you mean 'preview'?"),
        (["-p", "nofile.xml", "-o", "x.h5"], 1, "there is no such file either"),
        (["-p", "preview", "-o", "x.h5", "--to", ":9002"], 2, "expected HOST:PORT"),
        (["-p", "preview", "-o", "x.h5", "--set", "a.b=1", "--set", "a.b = 2"], 2, "given twice"),
        (["-p", "preview", "-o", "x.h5", "--set", "nonsense"], 2, "expected GADGET.PROPERTY=VALUE"),
        (["-p", "preview", "-o", "x.h5", "--group", "data"], 1, "there is no group 'data'"),
    ],
)
def test_replay_mistakes(raw, tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    got, output = run("replay", raw, *arguments)
    assert (got, message in output) == (status, True), output


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_run_without_images_leaves_no_file_and_spares_the_old_one(raw, tmp_path, overwrite):
    output = tmp_path / "out.h5"
    if overwrite:
        output.write_text("precious")
    for mistake in (["-p", "previw"], ["-p", "preview", "--to", "127.0.0.1:1"], ["-p", "preview", "--set", "a.b=c"]):
        assert run("replay", raw, "-o", output, *mistake, *overwrite)[0] == 1
        assert (output.read_text() == "precious") if overwrite else not output.exists()
    assert run("replay", raw, "-p", "preview", "-o", output, *overwrite)[0] == 0


def test_a_simulation_does_not_replace_what_is_none(raw, tmp_path):
    before = raw.read_bytes()
    status, output = run("simulate", raw, "--matrix", 16)
    assert (status, raw.read_bytes()) == (1, before)
    assert "is not a simulated scan" in output
    settings = ["--trajectory", "cartesian", "--matrix", 16, "--coils", 2]
    for _ in range(2):
        assert run("simulate", tmp_path / "new.h5", *settings)[0] == 0


def test_exported_definitions_that_were_changed_are_kept(tmp_path):
    run("pipelines", "--export", tmp_path)
    run("pipelines", "--export", tmp_path)
    (tmp_path / "preview.xml").write_text("mine")
    status, output = run("pipelines", "--export", tmp_path)
    assert (status, (tmp_path / "preview.xml").read_text()) == (1, "mine")
    assert "exists with other content" in output
    assert run("pipelines", "--export", tmp_path, "--overwrite")[0] == 0


def test_a_gadget_that_cannot_be_loaded_leaves_the_others_alone(monkeypatch, caplog):
    broken = EntryPoint("Broken", "no_such_module:Broken", GROUP)
    untyped = EntryPoint("Untyped", "collections:OrderedDict", GROUP)
    monkeypatch.setattr("pipelines.registry.entry_points", lambda group: [broken, untyped, *entry_points(group=group)])
    found = installed_gadgets.__wrapped__()
    assert "Preview" in found
    assert found.keys().isdisjoint({"Broken", "Untyped"})
    assert "'Broken' (no_such_module:Broken) of an unknown package cannot be loaded" in caplog.text
    assert "expected a subclass of Gadget" in caplog.text


def test_an_existing_output_is_not_overwritten(raw, tmp_path):
    shutil.copy(raw, tmp_path / "out.h5")
    status, output = run("replay", raw, "-p", "preview", "-o", tmp_path / "out.h5")
    assert status == 1
    assert "exists" in output


def test_the_raw_file_is_never_the_output(raw):
    before = raw.read_bytes()
    status, output = run("replay", raw, "-p", "preview", "-o", raw, "--overwrite")
    assert (status, raw.read_bytes()) == (2, before)
    assert "is the raw file itself" in output


@pytest.mark.parametrize("port", ["70000", "x"])
def test_serve_refuses_ports_that_do_not_exist(port):
    assert run("serve", "--port", port)[0] == 2


def test_serve_says_when_the_port_is_taken(address):
    status, output = run("serve", "--port", address[1])
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{address[1]}" in output


def test_serve_names_a_folder_for_recordings_that_it_cannot_make(tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "recordings"
    status, output = run("serve", "--port", 0, "--record", folder)
    assert (status, output) == (1, f"Error: --record {folder}: cannot be made: Not a directory\n")


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_serve_says_what_it_does_and_warns_of_the_network(monkeypatch, tmp_path, host, warned):
    monkeypatch.setattr(serve, "_stop_on_signals", lambda server: threading.Event())
    monkeypatch.setattr(Server, "serve_forever", lambda server: None)
    status, output = run("serve", "--host", host, "--port", 0, "--record", tmp_path, "--drain", 0)
    assert status == 0, output
    serves = rf"INFO spinstream \S+ serves on {host}:\d+ without TLS, recording to {tmp_path}\n"
    assert re.search(f"(?s){serves}.*INFO the server is being stopped\n.*INFO the server has stopped\n", output)
    assert (f"WARNING --host {host} without TLS: whoever reaches port" in output) == warned
