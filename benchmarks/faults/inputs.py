"""What a stranger may hand to spinstream, and what must become of it: a result or a SpinstreamError with a text.

Each target has valid inputs, words that mean something in them, and a function that reads one input. `mutated` makes
new inputs out of these, the same for the same random numbers.
"""

from __future__ import annotations

import io
import json
import random
import re
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import ismrmrd
import numpy as np

from gadgets.header_trajectory import in_plane_trajectory
from pipelines.bounds import Bounds
from pipelines.definition import DEFINITIONS, find_definition, load_definition, parse_definition
from pipelines.errors import SpinstreamError
from pipelines.header import read_header
from pipelines.registry import installed_gadgets
from pipelines.streams.conversation import fire_parameters
from pipelines.streams.file import open_raw
from pipelines.wire import (
    Close,
    ConfigFile,
    ConfigText,
    Connection,
    ErrorText,
    HeaderText,
    Message,
    MessageReader,
    Text,
)

BOUNDS = Bounds(text_bytes=1 << 20, data_bytes=1 << 24, xml_bytes=1 << 20, coil_image_bytes=1 << 26)
MARK, END_OF_MARK = re.compile(rb'[<",}]'), re.compile(rb'[>":]')
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

HEADER_XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
<subjectInformation><patientName>a^b</patientName><patientWeight_kg>80</patientWeight_kg><patientID>7</patientID>
<patientBirthdate>1957-03-04</patientBirthdate><patientGender>O</patientGender></subjectInformation>
<studyInformation><studyDate>2026-11-22</studyDate><studyTime>10:00:00</studyTime></studyInformation>
<measurementInformation><measurementID>m1</measurementID><patientPosition>HFS</patientPosition>
<measurementDependency><dependencyType>noise</dependencyType><measurementID>m0</measurementID></measurementDependency>
</measurementInformation>
<acquisitionSystemInformation><systemVendor>x</systemVendor><systemFieldStrength_T>3.0</systemFieldStrength_T>
<relativeReceiverNoiseBandwidth>0.79</relativeReceiverNoiseBandwidth><receiverChannels>4</receiverChannels>
<coilLabel><coilNumber>0</coilNumber><coilName>H1</coilName></coilLabel></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>
<encoding>
<encodedSpace><matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
<fieldOfView_mm><x>320</x><y>160</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>8</x><y>8</y><z>1</z></matrixSize>
<fieldOfView_mm><x>160</x><y>160</y><z>5</z></fieldOfView_mm></reconSpace>
<encodingLimits>
<kspace_encoding_step_1><minimum>0</minimum><maximum>7</maximum><center>4</center></kspace_encoding_step_1>
<repetition><minimum>0</minimum><maximum>2</maximum><center>0</center></repetition></encodingLimits>
<trajectory>%s</trajectory>
<trajectoryDescription><identifier>%s</identifier>
<userParameterLong><name>interleaves</name><value>8</value></userParameterLong>
<userParameterDouble><name>exponent</name><value>1.5</value></userParameterDouble></trajectoryDescription>
<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>
<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>
<calibrationMode>embedded</calibrationMode></parallelImaging>
</encoding>
<sequenceParameters><TR>4.6</TR><TE>2.3</TE><TE>3.4</TE><flipAngle_deg>15</flipAngle_deg></sequenceParameters>
<userParameters><userParameterString><name>n</name><value>text</value></userParameterString></userParameters>
</ismrmrdHeader>"""
HEADERS = [
    HEADER_XML % kind
    for kind in [
        ("cartesian", "none"),
        ("radial", "none"),
        ("goldenangle", "none"),
        ("spiral", "ArchimedeanSpiral"),
        ("spiral", "VariableDensitySpiral"),
    ]
]

XML_WORDS = (
    b"<!-- ", b" -->",
    b"<![CDATA[", b"]]>", b"<?pi ?>", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"&b;", b"&#0;", b"&#x10FFFF;",
    b"&lt;", b"</", b"/>", b"<a>", b'xsi:nil="true"', b'xsi:type="xs:string"', b'xmlns=""', b'xmlns:x="y"', b"x:",
    b"\0",     b"\xff\xfe", b"\xc3\xa9", b"\xf0\x9f\xa7\xa0", b'<?xml version="1.1" encoding="UTF-16"?>',
    b'encoding="latin-1"',
    b"@",
)  # fmt: skip
NUMBER_WORDS = (
    b"", b"0",
    b"-1", b"1e400", b"-1e-400", b"NaN", b"INF", b"-INF", b"1_000", b" 7 ", b"0x10", b"65535", b"65536", b"1.5",
    b"99999999999999999999", b"9" * 5000, b"+4", "٣".encode(), b"true", b"auto",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One reader of spinstream.

    Attributes:
        seeds: valid inputs.
        words: that mean something to it.
        read: reads an input; raises a SpinstreamError with a text if it is not valid. Anything else is a finding.
        is_document: whether inputs are text with elements in lines.
    """

    seeds: Sequence[bytes]
    words: Sequence[bytes]
    read: Callable[[bytes], object]
    is_document: bool = False

    def takes(self, raw: bytes) -> bool:
        """Whether an input is valid; raises what must not be raised."""
        try:
            self.read(raw)
        except SpinstreamError as error:
            if not str(error).strip():
                raise AssertionError("an error without a text") from error
            return False
        return True


def mutated(draw: random.Random, target: Target) -> bytes:
    """A valid input with some things wrong with it."""
    raw = bytearray(draw.choice(target.seeds))
    mutations = DOCUMENTS if target.is_document and draw.random() < 0.7 else BYTES  # the latter seldom stay well-formed
    for _ in range(draw.choice((1, 1, 1, 2, 3, 5, 8))):
        draw.choice(mutations)(draw, raw, target)
    return bytes(raw)


def _flip(draw: random.Random, raw: bytearray, target: Target) -> None:
    if raw:
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)


def _cut(draw: random.Random, raw: bytearray, target: Target) -> None:
    del raw[draw.randint(0, len(raw)) :]


def _number(draw: random.Random, raw: bytearray, target: Target) -> None:
    """A length, a count or a kind becomes another."""
    size = draw.choice((1, 2, 4, 8))
    at = draw.randint(0, len(raw))
    raw[at : at + size] = (draw.choice(NUMBERS) % 256**size).to_bytes(size, "little")


def _word(draw: random.Random, raw: bytearray, target: Target) -> None:
    at = draw.randint(0, len(raw))
    raw[at:at] = draw.choice(target.words)


def _remove(draw: random.Random, raw: bytearray, target: Target) -> None:
    start, end = _part(draw, raw)
    del raw[start:end]


def _double(draw: random.Random, raw: bytearray, target: Target) -> None:
    start, end = _part(draw, raw)
    raw[start:start] = raw[start:end] * draw.choice((1, 1, 1, 3, 20))


def _splice(draw: random.Random, raw: bytearray, target: Target) -> None:
    other = draw.choice(target.seeds)
    start, end = _part(draw, other)
    at = draw.randint(0, len(raw))
    raw[at : at + draw.choice((0, end - start))] = other[start:end]


def _value(draw: random.Random, raw: bytearray, target: Target) -> None:
    """What stands between two brackets or quotes becomes another word."""
    start = END_OF_MARK.search(raw, draw.randint(0, len(raw)))
    if start:
        end = MARK.search(raw, start.end())
        raw[start.end() : end.start() if end else len(raw)] = draw.choice(target.words)


def _line(draw: random.Random, raw: bytearray, target: Target) -> None:
    """A line, an element or two in these documents, comes twice, elsewhere, or not at all."""
    lines = raw.split(b"\n")
    line = lines.pop(draw.randrange(len(lines)))
    for _ in range(draw.choice((0, 1, 2))):
        lines.insert(draw.randint(0, len(lines)), line)
    raw[:] = b"\n".join(lines)


def _part(draw: random.Random, raw: bytes | bytearray) -> tuple[int, int]:
    start = draw.randint(0, len(raw))
    return start, min(len(raw), start + draw.choice((1, 2, 8, 40, 340, 2000)))


BYTES = (_flip, _flip, _cut, _number, _number, _word, _remove, _double, _splice)
DOCUMENTS = (_value, _value, _line)


def read_messages(raw: bytes) -> list[Message]:
    """All messages of a stream up to the close."""
    reader, messages = MessageReader(io.BytesIO(raw), bounds=BOUNDS), []
    while not messages or not isinstance(messages[-1], Close):
        messages.append(reader.read())
    return messages


def read_definition(raw: bytes) -> None:
    """A pipeline as a client sends it, with its gadgets."""
    parse_definition(raw, "fuzz", local=False, bounds=BOUNDS).build(installed_gadgets())


def read_mrd_header(raw: bytes) -> None:
    """A header, with the trajectories that gadgets compute from it."""
    for encoding in read_header(raw.decode(errors="replace"), BOUNDS).encoding:
        try:
            in_plane_trajectory(encoding)(0, 64, 32)
        except (ValueError, ZeroDivisionError, OverflowError) as error:  # chains report these as the gadget's
            raise SpinstreamError(f"no trajectory: {error}") from error


def read_parameters(raw: bytes) -> None:
    """FIRE's JSON, set on a pipeline."""
    parameters = fire_parameters(raw.decode(errors="replace"))
    if parameters is None:
        raise SpinstreamError("not FIRE's JSON")
    ours = {key: value for key, value in parameters.items() if "." in key}
    preview = find_definition("preview", [DEFINITIONS])
    preview.override(ours, "parameters", local=False).build(installed_gadgets())


def read_file(raw: bytes) -> int:
    """The raw data of a file, from beginning to end."""
    with tempfile.NamedTemporaryFile(dir=_memory(), suffix=".h5") as file:
        file.write(raw)
        file.flush()
        with open_raw(Path(file.name)) as data:
            return sum(1 for _ in data.items())


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


@lru_cache
def session() -> list[Message]:
    """What a client may send, one of each."""
    data = (np.arange(32) + 1j).astype(np.complex64).reshape(2, 16)
    trajectory = np.linspace(-0.5, 0.5, 32, dtype=np.float32).reshape(16, 2)
    image = ismrmrd.Image.from_array(np.ones((1, 1, 2, 3), np.float32), transpose=False)
    image.meta = {"DataRole": "Image", "ImageComments": ["a", "b"]}
    return [
        ConfigFile("preview"),
        ConfigText((DEFINITIONS / "preview.xml").read_text()),
        HeaderText(HEADERS[0]),
        Text(json.dumps({"parameters": {"CoilCompression.energy": 0.9}})),
        ismrmrd.Acquisition.from_array(data, scan_counter=1),
        ismrmrd.Acquisition.from_array(data, trajectory, scan_counter=2),
        ismrmrd.Waveform.from_array(np.arange(12, dtype=np.uint32).reshape(3, 4), waveform_id=2, time_stamp=7),
        image,
        ErrorText("no"),
        Close(),
    ]


def on_the_wire(messages: Sequence[Message]) -> bytes:
    """The bytes of some small messages."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Connection(ours) as connection, theirs.makefile("rb") as stream:
        for message in messages:
            connection.send(message)
        connection.hang_up()
        return stream.read()


def messages_target() -> Target:
    """Bytes from a socket."""
    alone = [on_the_wire([message]) for message in session()]
    ids = [raw[:2] for raw in alone]
    seeds = [on_the_wire(session()), *(raw + alone[-1] for raw in alone)]
    return Target(seeds, [*ids, b"\0" * 8, b"\xff" * 8, *XML_WORDS[:6]], read_messages)


def definition_target() -> Target:
    """Pipelines."""
    files = [path.read_bytes() for path in sorted(DEFINITIONS.glob("*.xml"))]
    gadgets = installed_gadgets()
    names = [name for gadget, kind in gadgets.items() for name in (gadget, *kind.properties())]
    return Target(
        files, [*XML_WORDS, *NUMBER_WORDS, *(name.encode() for name in names)], read_definition, is_document=True
    )


def header_target() -> Target:
    """MRD headers."""
    return Target([text.encode() for text in HEADERS], [*XML_WORDS, *NUMBER_WORDS], read_mrd_header, is_document=True)


def parameters_target() -> Target:
    """FIRE's JSON texts."""
    stages = load_definition(DEFINITIONS / "preview.xml").stages
    values = {
        f"{stage.gadget}.{name}": declared.default_text
        for stage in stages
        for name, declared in installed_gadgets()[stage.gadget].properties().items()
        if declared.kind != "path"
    }
    keys = list(values)
    texts = [json.dumps({"parameters": {key: values[key] for key in keys[i : i + 3]}}) for i in range(len(keys))]
    words = [b"[" * 3000, b'{"a":' * 3000, b"null", b"[]", b"{}", b'"', b"\\u0000", b"\\ud800", *NUMBER_WORDS]
    words += [json.dumps(key).encode() for key in keys]
    return Target([text.encode() for text in texts], words, read_parameters, is_document=True)


def file_target() -> Target:
    """ISMRMRD files. Some damage makes the HDF5 library itself loop or crash, which ends the process that reads."""
    words = [b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"\x89HDF\r\n\x1a\n", b"\xff" * 8, b"\0" * 8]
    return Target([_raw_file(waveforms=False), _raw_file(waveforms=True)], words, read_file)


def journal_target() -> Target:
    """Recordings as they are while a client sends."""
    return replace(messages_target(), seeds=[on_the_wire(session()[1:8]), on_the_wire(session()[1:])], read=read_file)


def _raw_file(waveforms: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "raw.h5"
        with closing(ismrmrd.Dataset(str(path), "dataset", True)) as file:
            file.write_xml_header(HEADERS[0].encode())
            for item in session()[4:6]:
                file.append_acquisition(item)
            if waveforms:
                file.append_waveform(session()[6])
        return path.read_bytes()


TARGETS: dict[str, Callable[[], Target]] = {
    "wire": messages_target,
    "definition": definition_target,
    "header": header_target,
    "json": parameters_target,
    "file": file_target,
    "journal": journal_target,
}
