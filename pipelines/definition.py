"""Reads and checks pipeline definitions.

A definition is a Gadgetron v2 configuration whose stream is one <external> node; the <configuration> inside that node
lists our gadgets in order. Everything is checked before data flow, and every problem is reported with its line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ismrmrd
from lxml import etree

from gadgets.gadget import ACQUISITIONS, IMAGE, Gadget
from gadgets.property import Property, PropertyError
from pipelines.bounds import BOUNDS, Bounds
from pipelines.errors import PipelineError
from pipelines.registry import Registry, nearest
from pipelines.safe_xml import XmlError, parse_xml

DEFINITIONS = Path(__file__).parent / "definitions"
CHILD_MODULE = "pipelines.streams.gadgetron"
CHILD_TARGET = "run_chain"
WRITERS: dict[str, type] = {
    "AcquisitionWriter": ismrmrd.Acquisition,
    "WaveformWriter": ismrmrd.Waveform,
    "ImageWriter": ismrmrd.Image,
}
ALL_OUTPUTS = tuple(WRITERS.values())


@dataclass(frozen=True)
class Setting:
    """A property value as written, and where: a place is "file:line" or the option that gave it."""

    text: str
    place: str
    local: bool


@dataclass(frozen=True)
class Stage:
    """One gadget as a definition names it."""

    gadget: str
    place: str
    settings: Mapping[str, Setting]


@dataclass(frozen=True)
class Definition:
    """A pipeline as written: well-formed, with nothing known yet about its gadgets.

    Attributes:
        name: for people and for the image history.
        description: the text of the comment at its head.
        stages: the gadgets in order.
        outputs: the MRD types that its <writers> let out; all where it has no <writers>.
    """

    name: str
    description: str
    stages: tuple[Stage, ...]
    outputs: tuple[type, ...] = ALL_OUTPUTS

    def override(self, values: Mapping[str, str], place: str, local: bool, bounds: Bounds = BOUNDS) -> Definition:
        """The same pipeline with properties set from "gadget.property" to text.

        Args:
            values: by "gadget.property".
            place: who says so, for messages.
            local: whether this machine's own user says so; the network may not set paths.
            bounds: of the number of values.

        Raises:
            PipelineError: a key names no gadget of this pipeline, or they are too many.
        """
        _require_few(len(values), bounds.properties, "properties", place)
        return replace(self, stages=_overridden(self, values, place, local))

    def build(self, registry: Registry) -> list[Gadget[Any]]:
        """Checks everything and makes the gadgets.

        Raises:
            PipelineError: with one line for each problem found.
        """
        problems = [*_unknown_gadgets(self.stages, registry), *_order_problems(self.stages, registry)]
        chain = []
        for stage in self.stages:
            if stage.gadget in registry:
                values, wrong = _read_settings(stage, registry[stage.gadget])
                problems += wrong
                chain.append(registry[stage.gadget](**values))
        if problems:
            raise PipelineError("\n".join(problems))
        return chain


def load_definition(path: Path) -> Definition:
    """Reads a definition from a file.

    Raises:
        PipelineError: the file cannot be read or is not a pipeline definition.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise PipelineError(f"{path}: cannot be read: {error.strerror}") from error
    return parse_definition(raw, path.name, local=True)


def parse_definition(raw: bytes, name: str, local: bool, bounds: Bounds = BOUNDS) -> Definition:
    """Reads a definition from XML text.

    Args:
        raw: a Gadgetron v2 configuration.
        name: what to call it in messages.
        local: whether it is this machine's own; one from the network may not set paths.
        bounds: of its size.

    Raises:
        PipelineError: it is not XML, not a v2 configuration, has no external node of ours, or is beyond the bounds.
    """
    root = _parse(raw, name, bounds)
    if root.tag != "configuration":
        raise PipelineError(f"{name}:{root.sourceline}: expected the root <configuration>, got <{root.tag}>")
    version = root.findtext("version")
    if version is None or version.strip() != "2":
        raise PipelineError(f"{name}:{root.sourceline}: expected <version>2</version>, got {version or 'none'}")
    inner = _external_configuration(root, name)
    return Definition(Path(name).stem, _description(root), _stages(inner, name, local, bounds), _outputs(root, name))


def parse_child_configuration(raw: bytes) -> Definition:
    """Reads what Gadgetron hands to an external process: the inner <configuration> alone.

    Raises:
        PipelineError: it is not a list of our gadgets.
    """
    root = _parse(raw, "<external>", BOUNDS)
    return Definition("gadgetron", "", _stages(root, "<external>", local=True, bounds=BOUNDS))


def whole_definition(raw: bytes, name: str) -> bytes:
    """The definition around the inner <configuration> that Gadgetron hands to an external process; others as they are.

    Raises:
        PipelineError: it is not XML.
    """
    root = _parse(raw, name, BOUNDS)
    if root.find("gadget") is None or root.find("stream") is not None:
        return raw
    whole = etree.Element("configuration")
    etree.SubElement(whole, "version").text = "2"
    external = etree.SubElement(etree.SubElement(whole, "stream"), "external")
    etree.SubElement(external, "execute", name=CHILD_MODULE, target=CHILD_TARGET, type="python")
    external.append(root)
    return bytes(etree.tostring(whole))


def available_definitions(folders: Iterable[Path]) -> dict[str, Path]:
    """Definition files by name without ".xml"; a later folder wins over an earlier one."""
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.xml"))}


def _file_hint(name: str) -> str:
    looks_like_a_path = name.endswith(".xml") or "/" in name
    return "; there is no such file either" if looks_like_a_path else ""


def find_definition(name: str, folders: Iterable[Path]) -> Definition:
    """The installed definition called `name`, with or without ".xml".

    Raises:
        PipelineError: there is none; the message lists those there are.
    """
    known = available_definitions(folders)
    stem = name.removesuffix(".xml")
    if stem not in known:
        listing = ", ".join(sorted(known)) or "none"
        raise PipelineError(
            f"no pipeline is called {name!r}{nearest(stem, known)}{_file_hint(name)} (there are: {listing})"
        )
    return load_definition(known[stem])


def _parse(raw: bytes, name: str, bounds: Bounds) -> etree._Element:
    try:
        return parse_xml(raw, bounds.xml_bytes)
    except XmlError as error:
        raise PipelineError(f"{name}:{error.line}: {error}") from None


def _description(root: etree._Element) -> str:
    above = [node for node in root.itersiblings(preceding=True) if node.tag is etree.Comment]
    return " ".join((above[-1].text or "").split()) if above else ""


def _elements(parent: etree._Element) -> list[etree._Element]:
    return [node for node in parent if isinstance(node.tag, str)]


def _external_configuration(root: etree._Element, name: str) -> etree._Element:
    stream = root.find("stream")
    nodes = [] if stream is None else _elements(stream)
    place = f"{name}:{root.sourceline if stream is None else stream.sourceline}"
    if [node.tag for node in nodes] != ["external"]:
        got = ", ".join(f"<{node.tag}>" for node in nodes) or "nothing"
        raise PipelineError(
            f"{place}: expected one <external> in <stream>, got {got} (C++ gadgets need Gadgetron itself)"
        )
    _check_execute(nodes[0].find("execute"), f"{name}:{nodes[0].sourceline}")
    inner = nodes[0].find("configuration")
    if inner is None:
        raise PipelineError(f"{name}:{nodes[0].sourceline}: <external> has no <configuration> with our gadgets")
    return inner


def _check_execute(execute: etree._Element | None, place: str) -> None:
    expected = {"name": CHILD_MODULE, "target": CHILD_TARGET, "type": "python"}
    got = {} if execute is None else dict(execute.attrib)
    if got != expected:
        words = " ".join(f'{key}="{value}"' for key, value in expected.items())
        raise PipelineError(f"{place}: expected <execute {words}/>, got {got or 'none'}")


def _outputs(root: etree._Element, name: str) -> tuple[type, ...]:
    """Gadgetron sends its client only what has a writer, and its client stumbles over anything else; so do we."""
    writers = root.find("writers")
    if writers is None:
        return ALL_OUTPUTS
    outputs = tuple(_output(node, f"{name}:{node.sourceline}") for node in _elements(writers))
    if not outputs:
        raise PipelineError(f"{name}:{writers.sourceline}: <writers> names no writer, so nothing could leave")
    return outputs


def _output(writer: etree._Element, place: str) -> type:
    kind = (writer.findtext("classname") or "").strip()
    if kind not in WRITERS:
        raise PipelineError(
            f"{place}: no writer is called {kind!r}{nearest(kind, WRITERS)} (there are: {', '.join(WRITERS)})"
        )
    return WRITERS[kind]


def _stages(configuration: etree._Element, name: str, local: bool, bounds: Bounds) -> tuple[Stage, ...]:
    place = f"{name}:{configuration.sourceline}"
    nodes = _elements(configuration)
    if not nodes:
        raise PipelineError(f"{place}: <configuration> lists no gadgets")
    _require_few(len(nodes), bounds.gadgets, "gadgets", place)
    _require_few(sum(map(len, nodes)), bounds.properties, "properties", place)
    return tuple(_stage(node, name, local) for node in nodes)


def _require_few(count: int, most: int, what: str, place: str) -> None:
    if count > most:
        raise PipelineError(f"{place}: expected at most {most} {what}, got {count}")


def _stage(node: etree._Element, name: str, local: bool) -> Stage:
    place = f"{name}:{node.sourceline}"
    if node.tag != "gadget" or not node.get("name"):
        raise PipelineError(f'{place}: expected <gadget name="...">, got <{node.tag}> {dict(node.attrib)}')
    settings: dict[str, Setting] = {}
    for child in _elements(node):
        where = f"{name}:{child.sourceline}"
        key, value = child.get("name"), child.get("value")
        if child.tag != "property" or key is None or value is None:
            raise PipelineError(f'{where}: expected <property name="..." value="..."/>, got <{child.tag}>')
        if "@" in value:
            raise PipelineError(f"{where}: {key}: '@' means a reference to Gadgetron and cannot stand in a value")
        if key in settings:
            raise PipelineError(f"{where}: {key} is set twice")
        settings[key] = Setting(value, where, local)
    return Stage(node.get("name", ""), place, settings)


def _overridden(pipeline: Definition, values: Mapping[str, str], place: str, local: bool) -> tuple[Stage, ...]:
    stages = list(pipeline.stages)
    names = [stage.gadget for stage in stages]
    for key, value in values.items():
        gadget, dot, name = key.partition(".")
        if not dot or gadget not in names:
            listing = ", ".join(names)
            raise PipelineError(
                f"{place}: {key}: expected gadget.property with a gadget of {pipeline.name!r}"
                f"{nearest(gadget, names)} (it has: {listing})"
            )
        for i, stage in enumerate(stages):
            if stage.gadget == gadget:
                stages[i] = replace(stage, settings={**stage.settings, name: Setting(value, place, local)})
    return tuple(stages)


def _unknown_gadgets(stages: Iterable[Stage], known: Registry) -> Iterator[str]:
    for stage in stages:
        if stage.gadget not in known:
            hint = nearest(stage.gadget, known)
            yield f"{stage.place}: no gadget is called {stage.gadget!r}{hint} (see: spinstream gadgets)"


def _order_problems(stages: Sequence[Stage], known: Registry) -> Iterator[str]:
    present = {ACQUISITIONS}
    for stage in stages:
        gadget = known.get(stage.gadget)
        if gadget is None:
            return
        for part in sorted(gadget.needs - present):
            yield f"{stage.place}: {stage.gadget} needs {part}, which {_who_adds(part, known)}"
        present = (present | gadget.adds) - gadget.removes
    if IMAGE in present:
        yield f"{stage.place}: images are made but nothing exports them; place ImageExport after {stage.gadget}"


def _who_adds(part: str, known: Registry) -> str:
    if part == ACQUISITIONS:
        takers = " or ".join(name for name, gadget in known.items() if part in gadget.removes)
        return f"{takers} before it has taken away; place it earlier"
    givers = [name for name, gadget in known.items() if part in gadget.adds]
    return f"nothing before it adds; place {' or '.join(givers) or 'a gadget that does'} before it"


def _read_settings(stage: Stage, gadget: type[Gadget[Any]]) -> tuple[dict[str, Any], list[str]]:
    values, problems = {}, []
    declared = gadget.properties()
    for name, setting in stage.settings.items():
        try:
            values[name] = _read_setting(name, setting, declared)
        except PropertyError as error:
            problems.append(f"{setting.place}: {stage.gadget}.{name}: {error}")
    return values, problems


def _read_setting(name: str, setting: Setting, declared: Mapping[str, Property[Any]]) -> object:
    if name not in declared:
        listing = ", ".join(declared) or "none"
        raise PropertyError(f"there is no such property{nearest(name, declared)} (there are: {listing})")
    if not setting.local and declared[name].is_of_this_machine(setting.text):
        known = declared[name].choices
        raise PropertyError(
            "a path can only be set in a pipeline file of this machine, not over the network"
            + (f"; names can be{nearest(setting.text, known)} (there are: {', '.join(known)})" if known else "")
        )
    return declared[name].parse(setting.text)
