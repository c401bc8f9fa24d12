"""What a header may say, and what nobody may read of it in a log."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from dataclasses import replace

import ismrmrd
import pytest

from gadgets.gadget import Gadget
from gadgets.noise_prewhitening import NoisePrewhitening
from gadgets.stored import pseudonym
from pipelines.bounds import Bounds
from pipelines.definition import parse_definition
from pipelines.errors import SpinstreamError
from pipelines.header import PATIENT, affordable, read_header, without_patient
from pipelines.session import open_chain
from pipelines.streams.conversation import Conversation
from pipelines.streams.limits import Limits
from pipelines.wire import Close, ConfigText, Connection, HeaderText, Text

from mrd_items import HEADER_XML, acquisition, configuration

SENTINEL = "Zebedee"
"""In every patient field; a birth date holds it where it is malformed."""
SCAN = f"42101_{SENTINEL}4711_900_"
"""Siemens' converter makes a measurementID of the device, the patient's ID, the study and the scan."""

PATIENT_XML = f"""
<subjectInformation>
  <patientName>{SENTINEL}^name</patientName><patientWeight_kg>80</patientWeight_kg>
  <patientID>{SENTINEL}-id</patientID><patientBirthdate>1957-03-04</patientBirthdate><patientGender>O</patientGender>
</subjectInformation>
<studyInformation>
  <studyDate>2026-11-22</studyDate><studyID>{SENTINEL}-study</studyID><accessionNumber>195703</accessionNumber>
  <referringPhysicianName>{SENTINEL}^doctor</referringPhysicianName>
  <studyDescription>{SENTINEL} has a headache</studyDescription>
</studyInformation>
<measurementInformation>
  <measurementID>{SCAN}35</measurementID><patientPosition>HFS</patientPosition>
  <measurementDependency>
    <dependencyType>noise</dependencyType><measurementID>{SCAN}34</measurementID>
  </measurementDependency>
</measurementInformation>
"""
USER_XML = f"""
<userParameters><userParameterString><name>comment</name><value>{SENTINEL} moved</value></userParameterString>
</userParameters>
"""
PATIENT_HEADER = HEADER_XML.replace("<experimentalConditions>", f"{PATIENT_XML}<experimentalConditions>").replace(
    "</ismrmrdHeader>", f"{USER_XML}</ismrmrdHeader>"
)

# Each makes the header wrong in a way that lies at or beside what is said of the patient.
MALFORMATIONS = {
    "birth date": ("1957-03-04", SENTINEL),
    "weight": ("<patientWeight_kg>80", f"<patientWeight_kg>{SENTINEL}"),
    "gender": ("<patientGender>O", f"<patientGender>{SENTINEL}"),
    "study date": ("2026-11-22", SENTINEL),
    "accession number": ("195703", f"{SENTINEL}-7"),
    "unknown field": ("<patientName>", f"<patientAlias>{SENTINEL}</patientAlias><patientName>"),
    "name as a field": ("<patientName>", f"<{SENTINEL}/><patientName>"),
    "name in a field": ("^name", f"<{SENTINEL}/>"),
    "name as an open tag": ("^name", f"<{SENTINEL}>"),
    "name as an entity": ("^name", f"&{SENTINEL};"),
    "name as an attribute": ("<patientName>", f"<patientName {SENTINEL}>"),
    "name as a prefix": ("<patientName>", f"<{SENTINEL}:patientName>"),
    "broken name": ("^name", f"]]>{SENTINEL}\x01"),
    "user number": (
        "<userParameters>",
        f"<userParameters><userParameterLong><name>a</name><value>{SENTINEL}</value></userParameterLong>",
    ),
}


def changed(old: str, new: str, header: str = HEADER_XML) -> str:
    assert old in header
    return header.replace(old, new, 1)


MATRIX_X = "encoding 0: encodedSpace/matrixSize/x: expected a number from 0 to 65535, got "


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "<x>16<",
            "<x>abc<",
            "line 6: encoding/encodedSpace/matrixSize/x: expected a value of the type int, got 'abc'",
        ),
        ("<x>16<", "<x>-5<", f"{MATRIX_X}-5"),
        ("<x>16<", "<x>65536<", f"{MATRIX_X}65536"),
        ("<x>16<", f"<x>{'9' * 30}<", "encoding/encodedSpace/matrixSize/x: expected a number of 64 bits, got 9999"),
        ("<x>16<", f"<x>{'9' * 9000}<", "matrixSize/x: expected a value of the type int, got '999"),
        ("<x>320<", "<x>NaN<", "encoding/encodedSpace/fieldOfView_mm/x: expected a number that is finite, got nan"),
        ("<x>320<", "<x>INF<", "encoding/encodedSpace/fieldOfView_mm/x: expected a number that is finite, got inf"),
        ("<x>160<", "<x>-160<", "reconSpace/fieldOfView_mm/x: expected a number of at least 0, got -160.0"),
        ("<maximum>7<", "<maximum>65536<", "kspace_encoding_step_1/maximum: expected a number from 0 to 65535"),
        ("<minimum>0<", "<minimum>9<", "kspace_encoding_step_1/maximum: expected a number from 9 to 65535, got 7"),
        ("<center>4<", "<center>-1<", "kspace_encoding_step_1/center: expected a number from 0 to 65535, got -1"),
        ("cartesian", "zigzag", "encoding/trajectory: expected a value of the type trajectoryType, got 'zigzag'"),
        ("123000000", "", "experimentalConditions/H1resonanceFrequency_Hz: expected a value, got none"),
        ("<x>16</x>", "<w>16</w>", "encoding/encodedSpace/matrixSize/w: there is no such field"),
        ("<trajectory>", "<trajectory><a/>", "encoding/trajectory/a: not valid"),
    ],
)
def test_a_header_that_no_scan_has_is_refused_by_field(old, new, reason):
    with pytest.raises(SpinstreamError) as caught:
        read_header(changed(old, new))
    assert str(caught.value).startswith("MRD header")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


def test_attributes_and_comments_change_nothing():
    """An attribute xsi:type would choose another type for a field, and a comment cut its text in two."""
    typed = changed("<x>16<", '<x xsi:type="xs:string">1<!-- and -->6<')
    typed = changed("<ismrmrdHeader ", '<ismrmrdHeader xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" ', typed)
    assert read_header(typed) == read_header(HEADER_XML)


def test_a_matrix_with_its_channels_must_fit_this_machine():
    system = "<acquisitionSystemInformation><receiverChannels>64</receiverChannels></acquisitionSystemInformation>"
    header = changed("<experimentalConditions>", f"{system}<experimentalConditions>")
    large = changed("<y>8</y><z>1</z>", "<y>2048</y><z>1</z>", changed("<x>16</x>", "<x>2048</x>", header))
    size = 2048 * 2048 * 64 * 8
    read_header(large, Bounds(coil_image_bytes=size))
    reason = rf"encodedSpace/matrixSize: 2048 x 2048 x 1 with 64 channel\(s\) makes images of {size} bytes; at most"
    with pytest.raises(SpinstreamError, match=reason):
        read_header(large, Bounds(coil_image_bytes=size - 1))
    with pytest.raises(SpinstreamError, match="receiverChannels: expected a number from 0 to 63, got 64"):
        read_header(header, Bounds(channels=63))
    with pytest.raises(SpinstreamError, match="at most 500 bytes of XML"):
        read_header(header, Bounds(xml_bytes=500))


def test_the_recon_matrix_must_fit_too():
    with pytest.raises(SpinstreamError, match="reconSpace/matrixSize: 65535 x 65535 x 65535"):
        read_header(
            changed(
                "<matrixSize><x>8</x><y>8</y><z>1</z>", "<matrixSize>" + "".join(f"<{a}>65535</{a}>" for a in "xyz")
            )
        )


@pytest.mark.parametrize("interleaves", [-1, 0, 10**12])
def test_interleaves_are_counted_before_they_are_computed(interleaves):
    description = (
        "<trajectoryDescription><identifier>ArchimedeanSpiral</identifier><userParameterLong><name>interleaves</name>"
        f"<value>{interleaves}</value></userParameterLong></trajectoryDescription></encoding>"
    )
    with pytest.raises(SpinstreamError, match=f"interleaves: expected a number from 1 to 4096, got {interleaves}"):
        read_header(changed("</encoding>", description))


def test_acquisitions_with_more_channels_than_the_matrix_allows_are_refused():
    header = read_header(HEADER_XML)
    bounds = Bounds(coil_image_bytes=16 * 8 * 4 * 8)
    items = affordable([acquisition(0, channels=4), Text("x"), acquisition(2, channels=5)], header, bounds)
    assert next(items).active_channels == 4
    next(items)
    with pytest.raises(
        SpinstreamError, match="acquisition 2 has 5 channels: .* takes 5120 bytes; at most 4096 are taken"
    ):
        next(items)


def test_what_is_wrong_about_the_patient_costs_no_image(caplog):
    header = read_header(changed(*MALFORMATIONS["birth date"], header=PATIENT_HEADER))
    assert header.subjectInformation is None
    assert header.studyInformation.studyID == f"{SENTINEL}-study"
    assert header.encoding == read_header(HEADER_XML).encoding
    assert caplog.messages == ["MRD header, line 6: <subjectInformation> is not valid and is left out"]


def test_gadgets_never_see_who_is_measured(site):
    whole = read_header(PATIENT_HEADER)
    assert whole.subjectInformation.patientName == f"{SENTINEL}^name"
    seen = []

    class Sees(Gadget[ismrmrd.Acquisition]):
        takes = ismrmrd.Acquisition

        def open(self, session):
            seen.append(session.header)

    definition = parse_definition(configuration("Sees").encode(), "sees", local=True)
    open_chain(definition, whole, replace(site, registry={"Sees": Sees}), print)
    assert seen == [without_patient(whole)]
    assert all(getattr(seen[0], part) is None for part in PATIENT)
    assert SCAN not in repr(seen)
    assert (whole.subjectInformation is not None) and SCAN in repr(whole)


class Blurts(Gadget[ismrmrd.Acquisition]):
    """Raises with all that it knows."""

    takes = ismrmrd.Acquisition

    def take(self, item):
        header = replace(self.session.header, userParameters=None)
        raise RuntimeError(f"cannot go on with {header!r}")


@pytest.mark.parametrize("malformation", [None, *MALFORMATIONS])
def test_no_log_and_no_error_names_the_patient(site, caplog, capfd, malformation, recwarn):
    """At any level, whatever is wrong with the header, and though a gadget raises."""
    caplog.set_level(logging.DEBUG)
    header = PATIENT_HEADER if malformation is None else changed(*MALFORMATIONS[malformation], header=PATIENT_HEADER)
    gadgets = {"NoisePrewhitening": NoisePrewhitening, "Blurts": Blurts}
    configured, noise = ConfigText(configuration(*gadgets)), acquisition(0)
    noise.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    texts = list(converse(replace(site, registry=gadgets), configured, header))
    texts += converse(replace(site, registry=gadgets), configured, header, noise)
    assert any("failed on acquisition" in text or "MRD header" in text for text in texts)
    if malformation is None:
        assert [path.name for path in site.state_folder.rglob("*.npz")] == [f"{pseudonym(f'{SCAN}35')}.npz"]
        assert any(f"The noise measurement {pseudonym(f'{SCAN}34')}, on which" in text for text in texts)
    said = [
        *texts,
        caplog.text,
        *capfd.readouterr(),
        *(str(w.message) for w in recwarn),
        *names_below(site.state_folder),
    ]
    for secret in (SENTINEL, "1957", "headache"):
        assert not [text for text in said if secret.lower() in text.lower()]


@pytest.mark.parametrize(
    "text",
    [
        f"{SENTINEL} moved",
        f'{{"parameters": ["{SENTINEL}"]}}',
        f'{{"parameters": {{"Blurts.x": ["{SENTINEL}"]}}}}',
        f'{{"parameters": {{"patient": "{SENTINEL}"}}, "{SENTINEL}": 1}}',
    ],
)
def test_no_log_repeats_what_the_client_says(site, caplog, text):
    caplog.set_level(logging.DEBUG)
    config = ConfigText(configuration("Blurts"))
    assert list(converse(replace(site, registry={"Blurts": Blurts}), config, HEADER_XML, Text(text), Text(text)))
    assert caplog.text
    assert SENTINEL not in caplog.text


def converse(site, *opening):
    """The texts that a client hears in a conversation that is held in this process."""
    config, header, *others = opening
    ours, theirs = socket.socketpair()
    with ours, theirs, Connection(ours, 5.0) as server, Connection(theirs, 5.0) as client:
        conversation = Conversation(server, site, Limits(), contextlib.nullcontext)
        thread = threading.Thread(target=conversation.run)
        thread.start()
        for message in (config, HeaderText(header), *others, acquisition(0), Close()):
            client.send(message)
        while not isinstance(message := client.receive(), Close):
            yield message.text
        client.hang_up()
        thread.join()


def names_below(folder) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*")] if folder.exists() else []
