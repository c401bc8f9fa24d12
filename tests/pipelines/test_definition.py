from pathlib import Path

import ismrmrd
import pytest

from gadgets.gadget import Gadget
from gadgets.property import choice, flag, integer, path, real
from pipelines.bounds import Bounds
from pipelines.definition import (
    DEFINITIONS,
    available_definitions,
    find_definition,
    load_definition,
    parse_definition,
    whole_definition,
)
from pipelines.errors import PipelineError
from pipelines.registry import installed_gadgets

from mrd_items import configuration


class Solve(Gadget[ismrmrd.Acquisition]):
    """Solves."""

    takes = ismrmrd.Acquisition
    iterations = integer(10, "How many.", low=1, high=100)
    weight = real(0.5, "Weight.", unit="Hz", low=0)
    limit = real(None, "Limit; auto computes it.")
    verbose = flag(False, "Whether.")
    method = choice("cg", ["cg", "lsqr"], "Which.")
    start = path(None, "Where from.")


REGISTRY = {"Solve": Solve}


def pipeline(properties: str, gadget: str = "Solve") -> bytes:
    inner = f'<gadget name="{gadget}">\n{properties}\n</gadget>'
    return configuration("X").replace('<gadget name="X"/>', inner).encode()


def build(raw: bytes, local: bool = True) -> Solve:
    return parse_definition(raw, "test.xml", local).build(REGISTRY)[0]


def test_properties_are_read_with_their_types():
    gadget = build(
        pipeline(
            '<property name="iterations" value="3"/><property name="weight" value="1e-3"/>'
            '<property name="verbose" value="true"/><property name="method" value="lsqr"/>'
            '<property name="start" value="/data/x"/><property name="limit" value="auto"/>'
        )
    )
    assert (gadget.iterations, gadget.weight, gadget.verbose, gadget.method) == (3, 1e-3, True, "lsqr")
    assert gadget.start == Path("/data/x")
    assert gadget.limit is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '<property name="iterations" value="ten"/>',
            "Solve.iterations: expected a whole number from 1 to 100, got 'ten'",
        ),
        ('<property name="iterations" value="2.5"/>', "expected a whole number from 1 to 100, got '2.5'"),
        ('<property name="iterations" value="0"/>', "expected a whole number from 1 to 100, got '0'"),
        ('<property name="weight" value="-1"/>', "expected a number of at least 0 in Hz, got '-1'"),
        ('<property name="weight" value="nan"/>', "expected a number of at least 0 in Hz, got 'nan'"),
        ('<property name="weight" value="auto"/>', "got 'auto'"),
        ('<property name="limit" value="x"/>', "expected a number, or \"auto\", got 'x'"),
        ('<property name="verbose" value="perhaps"/>', "expected true or false, got 'perhaps'"),
        ('<property name="method" value="gmres"/>', "expected one of cg, lsqr, got 'gmres'"),
        ('<property name="iteration" value="3"/>', "there is no such property; did you mean 'iterations'?"),
    ],
)
def test_bad_properties_give_file_line_and_what_was_expected(line, message):
    with pytest.raises(PipelineError) as caught:
        build(pipeline(line))
    assert str(caught.value).startswith("test.xml:5: Solve.")
    assert message in str(caught.value)


def test_all_problems_are_reported_at_once():
    lines = '<property name="iterations" value="x"/>\n<property name="weight" value="y"/>'
    with pytest.raises(PipelineError) as caught:
        build(pipeline(lines))
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == ["test.xml:5", "test.xml:6"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('<property name="weight" value="@other.weight"/>', "'@' means a reference to Gadgetron"),
        ('<property name="weight"/>', 'expected <property name="..." value="..."/>, got <property>'),
        ('<parameter name="weight" value="1"/>', "got <parameter>"),
        ('<property name="weight" value="1"/><property name="weight" value="2"/>', "weight is set twice"),
    ],
)
def test_malformed_settings(line, message):
    with pytest.raises(PipelineError, match="test.xml:5: ") as caught:
        parse_definition(pipeline(line), "test.xml", local=True)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"<configuration>", "test.xml:1: not well-formed XML"),
        (b"", "not well-formed XML"),
        (b"<gadgetronStreamConfiguration/>", "expected the root <configuration>"),
        (b"<configuration/>", "expected <version>2</version>, got none"),
        (b"<configuration><version>1</version></configuration>", "expected <version>2</version>, got 1"),
        (b"<configuration><version>2</version></configuration>", "expected one <external> in <stream>, got nothing"),
        (
            b"<configuration><version>2</version><stream><gadget/><external/></stream></configuration>",
            "got <gadget>, <external> (C++ gadgets need Gadgetron itself)",
        ),
        (configuration("Solve").replace("run_chain", "other").encode(), "expected <execute name="),
        (configuration().encode(), "lists no gadgets"),
        (configuration("Solve").replace("gadget name", "gadget nome").encode(), 'expected <gadget name="...">'),
        (
            b"<!DOCTYPE a [<!ENTITY b 'c'>]><configuration>&b;</configuration>",
            "a document type declaration is not taken",
        ),
        (
            b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><configuration/>",
            "a document type declaration is not taken",
        ),
    ],
)
def test_what_is_not_a_definition_is_refused(raw, message):
    with pytest.raises(PipelineError) as caught:
        parse_definition(raw, "test.xml", local=True)
    assert message in str(caught.value)
    assert str(caught.value).startswith("test.xml:")


def test_unknown_gadgets_get_the_nearest_known_name():
    with pytest.raises(PipelineError, match="test.xml:4: no gadget is called 'Solv'; did you mean 'Solve'\\?"):
        build(configuration("Solv").encode())


@pytest.mark.parametrize(
    ("gadgets", "message"),
    [
        (["FrameAssembly"], "FrameAssembly needs trajectory, which nothing before it adds; place Trajectory before it"),
        (["Trajectory", "FrameAssembly", "CgSense", "ImageExport"], "CgSense needs coil maps"),
        (
            ["Trajectory", "FrameAssembly", "NoisePrewhitening"],
            "NoisePrewhitening needs acquisitions, which FrameAssembly before it has taken away; place it earlier",
        ),
        (["Trajectory", "FrameAssembly", "CoilMaps", "Preview"], "images are made but nothing exports them"),
        (["ImageExport"], "ImageExport needs image"),
        (
            ["Trajectory", "FrameAssembly", "CoilMaps", "TotalVariation", "ImageExport"],
            "TotalVariation needs whitened data, which nothing before it adds; place NoisePrewhitening before it",
        ),
        (["Trajectory", "FrameAssembly", "JointSolver", "ImageExport"], "JointSolver needs whitened data"),
    ],
)
def test_orders_that_cannot_work_are_refused(gadgets, message):
    definition = parse_definition(configuration(*gadgets).encode(), "test.xml", local=True)
    with pytest.raises(PipelineError) as caught:
        definition.build(installed_gadgets())
    assert message in str(caught.value)


def test_overrides_set_properties():
    definition = parse_definition(configuration("Solve").encode(), "test.xml", local=True)
    gadget = definition.override({"Solve.iterations": "7"}, "--set", local=True).build(REGISTRY)[0]
    assert gadget.iterations == 7


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("Solv.iterations", "--set: Solv.iterations: expected gadget.property .* did you mean 'Solve'"),
        ("iterations", "--set: iterations: expected gadget.property"),
        ("Solve.iteration", "--set: Solve.iteration: there is no such property; did you mean 'iterations'"),
        ("Solve.iterations", "--set: Solve.iterations: expected a whole number"),
    ],
)
def test_bad_overrides_are_named(key, message):
    definition = parse_definition(configuration("Solve").encode(), "test.xml", local=True)
    with pytest.raises(PipelineError, match=message):
        definition.override({key: "x"}, "--set", local=True).build(REGISTRY)


def test_the_network_cannot_set_paths():
    setting = '<property name="start" value="/etc/passwd"/>'
    with pytest.raises(PipelineError, match="a path can only be set in a pipeline file of this machine"):
        build(pipeline(setting), local=False)
    definition = parse_definition(configuration("Solve").encode(), "test.xml", local=True)
    with pytest.raises(PipelineError, match="not over the network"):
        definition.override({"Solve.start": "/etc/passwd"}, "parameters", local=False).build(REGISTRY)


def test_unknown_pipelines_get_the_nearest_name():
    with pytest.raises(PipelineError, match="no pipeline is called 'preveiw.xml'; did you mean 'preview'"):
        find_definition("preveiw.xml", [DEFINITIONS])


@pytest.mark.parametrize("name", ["../definitions/preview", "/etc/passwd", ""])
def test_pipeline_names_are_not_paths(name):
    with pytest.raises(PipelineError, match="no pipeline is called"):
        find_definition(name, [DEFINITIONS])


@pytest.mark.parametrize("name", available_definitions([DEFINITIONS]))
def test_shipped_definitions_build(name):
    definition = find_definition(f"{name}.xml", [DEFINITIONS])
    assert definition.description
    assert len(definition.build(installed_gadgets())) == len(definition.stages)


def test_a_later_folder_wins(tmp_path):
    (tmp_path / "preview.xml").write_text(configuration("Solve"))
    assert find_definition("preview", [DEFINITIONS, tmp_path]).stages[0].gadget == "Solve"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PipelineError, match="nothing.xml: cannot be read: No such file"):
        load_definition(tmp_path / "nothing.xml")


def test_writers_say_what_may_leave():
    one = configuration("Solve").replace(
        "<stream>", "<writers><writer><dll>x</dll><classname>ImageWriter</classname></writer></writers><stream>"
    )
    assert parse_definition(one.encode(), "test.xml", local=True).outputs == (ismrmrd.Image,)
    assert len(parse_definition(configuration("Solve").encode(), "test.xml", local=True).outputs) == 3
    with pytest.raises(PipelineError, match="no writer is called 'ImageWritre'; did you mean 'ImageWriter'"):
        parse_definition(one.replace("ImageWriter", "ImageWritre").encode(), "test.xml", local=True)


def test_the_sizes_of_a_pipeline_have_bounds():
    five = configuration(*["Solve"] * 5).encode()
    with pytest.raises(PipelineError, match="test.xml:3: expected at most 4 gadgets, got 5"):
        parse_definition(five, "test.xml", local=False, bounds=Bounds(gadgets=4))
    with pytest.raises(PipelineError, match="test.xml:1: expected at most 9 bytes of XML"):
        parse_definition(five, "test.xml", local=False, bounds=Bounds(xml_bytes=9))
    many = pipeline("\n".join(f'<property name="p{i}" value="1"/>' for i in range(8)))
    with pytest.raises(PipelineError, match="test.xml:3: expected at most 7 properties, got 8"):
        parse_definition(many, "test.xml", local=False, bounds=Bounds(properties=7))


def test_parameters_of_a_client_are_no_more_than_a_pipeline_takes():
    """Each makes a setting: without a bound, one message would keep the server busy for hours."""
    definition = parse_definition(configuration("Solve").encode(), "test.xml", local=False)
    with pytest.raises(PipelineError, match="parameters: expected at most 1024 properties, got 1025"):
        definition.override({f"Solve.p{i}": "1" for i in range(1025)}, "parameters", local=False)


def test_xml_nests_only_so_deep():
    with pytest.raises(PipelineError, match="not well-formed XML: Excessive depth"):
        parse_definition(b"<configuration>" * 300, "test.xml", local=False)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "../secret.xml",
        "definitions/../../secret",
        "{outside}/secret",
        "{outside}/secret.xml",
        ".",
        "..",
        "/",
        "~/secret",
        "*",
        "secret\x00",
        "file:///etc/passwd",
        "..\\secret",
        "preview/../../secret",
        "%2e%2e/secret",
    ],
)
def test_a_configuration_name_leads_nowhere_but_to_the_configured_folders(tmp_path, name):
    (tmp_path / "secret.xml").write_text(configuration("Solve"))
    inside = tmp_path / "definitions"
    inside.mkdir()
    (inside / "preview.xml").write_text(configuration("Solve"))
    with pytest.raises(PipelineError, match=r"no pipeline is called .*\(there are: preview\)"):
        find_definition(name.format(outside=tmp_path), [inside])


def paths_of_gadgets() -> list[tuple[str, str]]:
    gadgets = installed_gadgets().items()
    return [
        (name, key) for name, gadget in gadgets for key, value in gadget.properties().items() if value.kind == "path"
    ]


def test_the_paths_that_gadgets_read_are_known():
    """A property that names a file must be declared as a path, or the network could set it."""
    assert set(paths_of_gadgets()) == {
        *((solver, "prior") for solver in ("BlindSolver", "DiffusionSolver", "JointSolver")),
        ("FieldMap", "file"),
        ("NoisePrewhitening", "covariance"),
    }
    texts = [
        (name, key) for name, g in installed_gadgets().items() for key, p in g.properties().items() if p.kind == "text"
    ]
    assert texts == [("FieldMap", "array")]  # a name inside that file


@pytest.mark.parametrize(
    "value", ["/etc/passwd", "map.npz", "~/map.npz", "ncsnv2:/tmp/weights", "../head_unet", "unet:x"]
)
@pytest.mark.parametrize(("gadget", "name"), paths_of_gadgets())
def test_no_path_is_taken_from_the_network(gadget, name, value):
    text = parse_definition(pipeline(f'<property name="{name}" value="{value}"/>', gadget), "text", local=False)
    plain = parse_definition(configuration(gadget).encode(), "text", local=True)
    for definition in (text, plain.override({f"{gadget}.{name}": value}, "parameters", local=False)):
        with pytest.raises(PipelineError, match=f"{gadget}.{name}: a path can only be set in a pipeline file of this"):
            definition.build(installed_gadgets())


def test_what_gadgetron_hands_to_a_child_becomes_a_definition_again():
    gadget = '<gadget name="Preview"><property name="a" value="1"/></gadget>'
    inner = f'<?xml version="1.0"?>\n<configuration>{gadget}</configuration>'.encode()
    (stage,) = parse_definition(whole_definition(inner, "recorded"), "recorded", local=False).stages
    assert stage.gadget == "Preview"
    assert stage.settings["a"].text == "1"


def test_a_whole_definition_stays_as_it_is():
    raw = (DEFINITIONS / "preview.xml").read_bytes()
    assert whole_definition(raw, "preview") == raw
