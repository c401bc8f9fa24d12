"""Reads MRD headers from anywhere: what gadgets find in one has its type, and fits this machine.

Errors name a field and quote numbers; they never quote what is said of a patient.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import reprlib
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import Any

import ismrmrd
from lxml import etree
from xsdata.formats.dataclass.context import XmlContext
from xsdata.formats.dataclass.parsers import XmlParser
from xsdata.formats.dataclass.parsers.config import ParserConfig
from xsdata.formats.dataclass.parsers.handlers import LxmlEventHandler

from gadgets.gadget import Header
from gadgets.stored import pseudonym
from pipelines.bounds import BOUNDS, Bounds
from pipelines.errors import SpinstreamError
from pipelines.safe_xml import XmlError, parse_xml

log = logging.getLogger("spinstream")

PATIENT = ("subjectInformation", "studyInformation")
"""The parts of a header that say who was measured."""

NUMERIC = ("encoding", "sequenceParameters", "acquisitionSystemInformation", "experimentalConditions")
"""The parts whose numbers gadgets compute with; errors may quote them, for nobody writes of people there."""

UINT16 = 2**16 - 1
INT64 = 2**63
COMPLEX64_BYTES = 8
MOST_INTERLEAVES = 4096


_BINDINGS = XmlContext()
"""What xsdata knows of the classes of a header; costly to find out."""


def read_header(xml: str, bounds: Bounds = BOUNDS) -> Header:
    """The MRD header from its XML.

    A part about the patient that is not valid is left out with a warning: no image needs it.

    Raises:
        SpinstreamError: it is not one, or describes what no scan has or what is beyond the bounds.
    """
    try:
        root = parse_xml(xml.encode(), bounds.xml_bytes)
    except XmlError as error:
        raise SpinstreamError(f"MRD header, line {error.line}: {error.kind}") from None
    if etree.QName(root).localname != "ismrmrdHeader":
        raise SpinstreamError(f"MRD header: expected the root <ismrmrdHeader>, got <{root.tag}>")
    header = _bound(_plain(root))
    problem = next(_problems(header, bounds), None)
    if problem is not None:
        raise SpinstreamError(f"MRD header: {problem}")
    return header


def without_patient(header: Header) -> Header:
    """The same header without the parts that say who was measured, and with pseudonyms for measurementIDs."""
    nameless = copy.copy(header)
    for part in PATIENT:
        setattr(nameless, part, None)
    information = nameless.measurementInformation
    if information is not None:
        needed = [
            replace(each, measurementID=pseudonym(each.measurementID)) for each in information.measurementDependency
        ]
        own = information.measurementID and pseudonym(information.measurementID)
        nameless.measurementInformation = replace(information, measurementID=own, measurementDependency=needed)
    return nameless


def affordable(items: Iterable[object], header: Header, bounds: Bounds = BOUNDS) -> Iterator[object]:
    """The items themselves, as long as images of all their channels are within the bounds.

    Raises:
        SpinstreamError: an acquisition has too many channels for the header's matrix.
    """
    voxels = max((_voxels(encoding.encodedSpace) for encoding in header.encoding), default=0)
    for item in items:
        if isinstance(item, ismrmrd.Acquisition):
            size = voxels * item.active_channels * COMPLEX64_BYTES
            if size > bounds.coil_image_bytes:
                raise SpinstreamError(
                    f"acquisition {item.scan_counter} has {item.active_channels} channels: with the header's matrix, "
                    f"an image of each takes {size} bytes; at most {bounds.coil_image_bytes} are taken"
                )
        yield item


class _FieldError(Exception):
    """A field of the header that its binding does not take."""

    def __init__(self, element: etree._Element, error: Exception) -> None:
        path = [etree.QName(node).localname for node in (element, *element.iterancestors())]
        self.section = path[-2] if len(path) > 1 else ""
        self.line = element.sourceline or 1
        self.field = "/".join(path[-2::-1]) or path[-1]
        self.reason = _reason(element, error, quote=self.section in NUMERIC)


class _Handler(LxmlEventHandler):
    """Notes at which element the binding fails."""

    def process_context(self, context: Iterable[tuple[str, Any]], ns_map: dict[str | None, str]) -> Any:
        at: etree._Element | None = None

        def noted() -> Iterator[tuple[str, Any]]:
            nonlocal at
            for event, element in context:
                at = at if event == "start-ns" else element
                yield event, element

        try:
            return super().process_context(noted(), ns_map)
        except Exception as error:  # the generated bindings raise whatever their converters raise
            assert at is not None
            raise _FieldError(at, error) from None


def _plain(root: etree._Element) -> etree._Element:
    """Elements and text alone: MRD headers have no attributes, and comments would cut their texts."""
    etree.strip_elements(root, etree.Comment, etree.ProcessingInstruction, with_tail=False)
    for element in root.iter():
        element.attrib.clear()
    return root


def _bound(root: etree._Element) -> Header:
    parser = XmlParser(config=ParserConfig(fail_on_converter_warnings=True), handler=_Handler, context=_BINDINGS)
    try:
        return parser.parse(copy.deepcopy(root), ismrmrd.xsd.ismrmrdHeader)
    except _FieldError as error:
        if error.section not in PATIENT:
            raise SpinstreamError(f"MRD header, line {error.line}: {error.field}: {error.reason}") from None
        log.warning("MRD header, line %d: <%s> is not valid and is left out", error.line, error.section)
        etree.strip_elements(root, f"{{*}}{error.section}", with_tail=False)
        return _bound(root)


def _reason(element: etree._Element, error: Exception, quote: bool) -> str:
    text, kind = str(error), re.search(r"is not a valid `(\w+)`", str(error))
    if kind:
        return f"expected a value of the type {kind[1]}" + (f", got {reprlib.repr(element.text)}" if quote else "")
    lacking = re.search(r"missing \d+ required .*", text)
    if lacking:
        return lacking[0]
    return "there is no such field" if text.startswith("Unknown property") else f"not valid ({type(error).__name__})"


def _problems(header: Header, bounds: Bounds) -> Iterator[str]:
    yield from _wrong_values(header, "")
    if header.encoding:
        system = header.acquisitionSystemInformation
        channels = (system and system.receiverChannels) or 1
        if not 0 <= channels <= bounds.channels:
            yield _out_of_range(
                "acquisitionSystemInformation/receiverChannels", f"from 0 to {bounds.channels}", channels
            )
        for number, encoding in enumerate(header.encoding):
            name = f"encoding {number}: "
            yield from _wrong_space(encoding.encodedSpace, f"{name}encodedSpace", channels, bounds)
            yield from _wrong_space(encoding.reconSpace, f"{name}reconSpace", 1, bounds)
            yield from _wrong_limits(encoding.encodingLimits, f"{name}encodingLimits")
            yield from _wrong_interleaves(encoding.trajectoryDescription, f"{name}trajectoryDescription")


def _wrong_values(node: Any, path: str) -> Iterator[str]:
    """Numbers that fit no machine number or are not finite, and required fields that are empty."""
    for field in fields(node):
        value = getattr(node, field.name)
        for each in value if isinstance(value, list) else [value]:
            where = f"{path}{field.name}"
            if is_dataclass(each):
                yield from _wrong_values(each, f"{where}/")
            elif _required(field) and (each is None or (each == "" and "str" not in str(field.type))):
                yield f"{where}: expected a value, got none"
            elif isinstance(each, int) and not -INT64 <= each < INT64:
                yield _out_of_range(where, "of 64 bits", each)
            elif isinstance(each, float) and not math.isfinite(each) and where.startswith(NUMERIC):
                yield _out_of_range(where, "that is finite", each)


def _required(field: Field[Any]) -> bool:
    """Old releases of ismrmrd give required fields the default None, and say so in their metadata."""
    return bool(field.metadata.get("required")) or (field.default is MISSING and field.default_factory is MISSING)


def _wrong_space(space: Any, name: str, channels: int, bounds: Bounds) -> Iterator[str]:
    if space is None or space.matrixSize is None or space.fieldOfView_mm is None:
        return  # the gadgets that need a grid say that there is none
    for axis in "xyz":
        size, extent = getattr(space.matrixSize, axis), getattr(space.fieldOfView_mm, axis)
        if not 0 <= size <= UINT16:
            yield _out_of_range(f"{name}/matrixSize/{axis}", f"from 0 to {UINT16}", size)
        if not extent >= 0:
            yield _out_of_range(f"{name}/fieldOfView_mm/{axis}", "of at least 0", extent)
    size = _voxels(space) * channels * COMPLEX64_BYTES
    if size > bounds.coil_image_bytes:
        matrix = " x ".join(str(getattr(space.matrixSize, axis)) for axis in "xyz")
        yield (
            f"{name}/matrixSize: {matrix} with {channels} channel(s) makes images of {size} bytes; at most "
            f"{bounds.coil_image_bytes} are taken"
        )


def _wrong_limits(limits: Any, name: str) -> Iterator[str]:
    for field in fields(limits) if limits is not None else ():
        limit = getattr(limits, field.name)
        if limit is None:
            continue
        for part in ("minimum", "maximum", "center"):
            value = getattr(limit, part)
            low = limit.minimum if part == "maximum" else 0
            if not low <= value <= UINT16:
                yield _out_of_range(f"{name}/{field.name}/{part}", f"from {low} to {UINT16}", value)


def _wrong_interleaves(description: Any, name: str) -> Iterator[str]:
    """Each of the interleaves that a header describes is computed, whether it is measured or not."""
    for parameter in description.userParameterLong if description is not None else ():
        if parameter.name == "interleaves" and not 1 <= parameter.value <= MOST_INTERLEAVES:
            yield _out_of_range(f"{name}: interleaves", f"from 1 to {MOST_INTERLEAVES}", parameter.value)


def _voxels(space: Any) -> int:
    size = space.matrixSize if space is not None else None
    return 0 if size is None else int(size.x) * int(size.y) * int(size.z)


def _out_of_range(name: str, expected: str, value: float) -> str:
    return f"{name}: expected a number {expected}, got {reprlib.repr(value)}"
