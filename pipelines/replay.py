"""Runs the raw data of a file through a pipeline: in this process, or as a client of any MRD server."""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import ismrmrd

from pipelines.definition import Definition, find_definition, load_definition, parse_definition, whole_definition
from pipelines.errors import PipelineError, SpinstreamError
from pipelines.header import read_header
from pipelines.session import Site, open_chain
from pipelines.streams.client import stream
from pipelines.streams.conversation import fire_parameters
from pipelines.streams.file import Raw
from pipelines.wire import ConfigFile, ConfigText

SIEMENS_TICK_MS = 2.5
OTHER_TICK_MS = 1.0
LONGEST_PAUSE_S = 60.0
RECORDED = "recorded configuration"
VERSION = re.compile(r"<version>[^<]*</version>")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What to replay, and how.

    Attributes:
        raw: ISMRMRD file or journal.
        group: of the measurement in it.
        pipeline: name of an installed definition, or the path of one; None takes what the client of a recording asked
            for, with the parameters that it set.
        parameters: properties to set, by "gadget.property".
        realtime: pace the acquisitions by their time stamps.
        tick_ms: length of one time stamp tick; None takes Siemens' 2.5 ms for Siemens data and 1 ms for all others.
    """

    raw: Path
    pipeline: str | None
    group: str = "dataset"
    parameters: Mapping[str, str] = field(default_factory=dict)
    realtime: bool = False
    tick_ms: float | None = None


Sink = Callable[[ismrmrd.Image], None]
Progress = Callable[[Iterable[ismrmrd.Acquisition], int], Iterable[ismrmrd.Acquisition]]


def replay_here(job: Replay, raw: Raw, site: Site, sink: Sink, note: Callable[[str], None], show: Progress) -> None:
    """Runs the pipeline in this process.

    Args:
        job: what to replay.
        raw: its open file.
        site: of this machine.
        sink: takes each item that comes out.
        note: takes what gadgets tell.
        show: wraps the items in a progress display.

    Raises:
        SpinstreamError: the pipeline, the header or the data are not usable; says why.
    """
    definition = _definition(job, raw, site, note).override(job.parameters, "--set", local=True)
    chain = open_chain(definition, read_header(raw.header_xml), site, note)
    for item in chain.run(show(_items(job, raw, note), raw.acquisitions)):
        sink(item)
    note(f"times: {chain.report()}")


def replay_to(
    address: tuple[str, int],
    job: Replay,
    raw: Raw,
    sink: Sink,
    note: Callable[[str], None],
    show: Progress,
    patience_s: float | None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Streams the file to an MRD server. A pipeline that is a file here is sent as text, a name is sent as a name.

    Raises:
        WireError: the server is not there, broke off, or reported an error.
        FileError: the raw file turned out unreadable.
    """
    config, parameters = _request(job, raw, note)
    items = show(_items(job, raw, note), raw.acquisitions)
    stream(address, config, _without_version(raw.header_xml, note), items, sink, note, parameters, patience_s, tls)


def _without_version(header_xml: str, note: Callable[[str], None]) -> str:
    """The header without its <version>: at any but its own library's Gadgetron waits for ever, and says nothing."""
    found = VERSION.search(header_xml)
    if not found:
        return header_xml
    note(f"the header is sent without its {found[0]}, at which Gadgetron could hang")
    return VERSION.sub("", header_xml, count=1)


def local_definition(pipeline: str, site: Site) -> Definition:
    """The definition that a name or a path means.

    Raises:
        PipelineError: there is none, or it cannot be read.
    """
    path = Path(pipeline)
    return load_definition(path) if path.is_file() else find_definition(pipeline, site.definitions)


def _definition(job: Replay, raw: Raw, site: Site, note: Callable[[str], None]) -> Definition:
    if job.pipeline is not None:
        return local_definition(job.pipeline, site)
    config, parameters = _recorded(raw, note)
    if isinstance(config, ConfigFile):
        definition = find_definition(config.name, site.definitions)
    else:
        definition = parse_definition(config.xml.encode(), RECORDED, local=False)
    return definition.override(parameters, "recorded parameters", local=False)


def _request(job: Replay, raw: Raw, note: Callable[[str], None]) -> tuple[ConfigFile | ConfigText, dict[str, str]]:
    """What to ask a server for."""
    if job.pipeline is None:
        config, parameters = _recorded(raw, note)
        return config, {**parameters, **job.parameters}
    path = Path(job.pipeline)
    return ConfigText(_read_text(path)) if path.is_file() else ConfigFile(job.pipeline), dict(job.parameters)


def _recorded(raw: Raw, note: Callable[[str], None]) -> tuple[ConfigFile | ConfigText, dict[str, str]]:
    """What the client of a recording asked its server for: a pipeline, and properties of its gadgets."""
    if raw.config is None:
        raise PipelineError(f"{raw.path}: does not say which pipeline is meant; name one with -p")
    texts = fire_parameters(raw.parameters or "") or {}
    parameters = {key: value for key, value in texts.items() if "." in key}
    name = raw.config.name if isinstance(raw.config, ConfigFile) else "sent as text"
    settings = "".join(f", {key}={value}" for key, value in parameters.items())
    note(f"as recorded: pipeline {name}{settings}")
    if isinstance(raw.config, ConfigFile):
        return raw.config, parameters
    return ConfigText(whole_definition(raw.config.xml.encode(), RECORDED).decode()), parameters


def _items(job: Replay, raw: Raw, note: Callable[[str], None]) -> Iterable[ismrmrd.Acquisition]:
    if raw.dropped is not None:
        note(f"{raw.path} is not complete: {raw.dropped}")
    if not job.realtime:
        return raw.items()
    return paced(raw.items(), job.tick_ms or _tick_ms(raw.header_xml))


def paced(
    items: Iterable[ismrmrd.Acquisition], tick_ms: float, sleep: Callable[[float], None] = time.sleep
) -> Iterator[ismrmrd.Acquisition]:
    """Yields items no earlier than their time stamps say, counted from the first.

    A jump of more than `LONGEST_PAUSE_S` (a noise scan of an hour before, a clock past midnight) is not waited for.
    """
    start: float | None = None
    for item in items:
        stamp = item.time_stamp if isinstance(item, ismrmrd.Waveform) else item.acquisition_time_stamp
        due = stamp * tick_ms / 1000
        now = time.monotonic()
        if start is None or abs(start + due - now) > LONGEST_PAUSE_S:
            start = now - due
        elif start + due > now:
            sleep(start + due - now)
        yield item


def _tick_ms(header_xml: str) -> float:
    system = read_header(header_xml).acquisitionSystemInformation
    vendor = (system.systemVendor or "") if system else ""
    return SIEMENS_TICK_MS if "siemens" in vendor.lower() else OTHER_TICK_MS


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpinstreamError(f"{path}: cannot be read as text: {error}") from error
