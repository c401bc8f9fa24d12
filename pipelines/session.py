"""Turns a definition and an MRD header into a chain that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import ismrmrd
import platformdirs
import psutil
import torch

from gadgets.gadget import Header, Session
from pipelines.chain import Chain
from pipelines.definition import DEFINITIONS, Definition
from pipelines.errors import PipelineError, SpinstreamError
from pipelines.executors.executor import Executor
from pipelines.registry import Registry, installed_gadgets
from pipelines.safe_xml import XmlError, parse_xml
from recon_core.cache import ContentCache

log = logging.getLogger("spinstream")

CACHE_SHARE = 0.125
"""Of the memory of the machine, or of its CUDA device where that is used and has less: room for some hundred
two-dimensional trajectories on a laptop, and small beside what a reconstruction needs."""


def _cache() -> ContentCache:
    return ContentCache(int(CACHE_SHARE * psutil.virtual_memory().total))


@dataclass(frozen=True, kw_only=True)
class Site:
    """What is the same for all sessions of this machine.

    Attributes:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        seed: of the sessions' random draws.
        state_folder: keeps what outlives a session, such as noise covariances.
        definitions: folders with pipeline definitions; a later folder wins.
        registry: the gadgets that pipelines may name.
        cluster: address of a Dask scheduler whose workers compute frames; None computes them here.
        cache: of what sessions build for trajectories, by content.
    """

    device: str = "auto"
    seed: int = 0
    state_folder: Path = field(default_factory=lambda: platformdirs.user_state_path("spinstream"))
    definitions: tuple[Path, ...] = (DEFINITIONS,)
    registry: Registry = field(default_factory=installed_gadgets)
    cluster: str | None = None
    cache: ContentCache = field(default_factory=_cache, compare=False)

    def __post_init__(self) -> None:
        if self.device != "cpu" and torch.cuda.is_available():
            memory = torch.cuda.get_device_properties(0).total_memory
            self.cache.limit_bytes = min(self.cache.limit_bytes, int(CACHE_SHARE * memory))

    def torch_device(self) -> torch.device:
        """The device to compute on.

        Raises:
            PipelineError: CUDA is asked for and there is none.
        """
        available = torch.cuda.is_available()
        if self.device == "cuda" and not available:
            raise PipelineError("device cuda was asked for, but torch sees no CUDA device on this machine")
        return torch.device("cuda" if available and self.device != "cpu" else "cpu")


def open_chain(
    definition: Definition,
    header: Header,
    site: Site,
    tell: Callable[[str], None],
    require_client: Callable[[], object] = lambda: None,
    turn: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Chain:
    """A chain for one session.

    Args:
        definition: what to run.
        header: of the measurement; see `read_header`.
        site: of this machine.
        tell: takes what gadgets say to the person at the client.
        require_client: raises when the client is gone.
        turn: how sessions share the device; see `Session`.

    Raises:
        PipelineError: the definition cannot run.
        GadgetError: a gadget refuses the header.
        ClusterError: the cluster of this site is not there.
    """
    gadgets = definition.build(site.registry)
    session = Session(
        header=header,
        device=site.torch_device(),
        seed=site.seed,
        state_folder=site.state_folder,
        tell=tell,
        cache=site.cache,
        require_client=require_client,
        turn=turn,
    )
    log.info("pipeline %s on %s, seed %d", definition.name, session.device, session.seed)
    return Chain(gadgets, session, definition.outputs, _executor(site))


def _executor(site: Site) -> Executor | None:
    if site.cluster is None:
        return None
    from pipelines.executors.cluster import Cluster

    return Cluster(site.cluster, site.torch_device())


def read_header(xml: str) -> Header:
    """The MRD header from its XML.

    Raises:
        SpinstreamError: it is not one.
    """
    raw = xml.encode()
    try:
        root = parse_xml(raw)
    except XmlError as error:
        raise SpinstreamError(f"MRD header, line {error.line}: {error}") from None
    if not str(root.tag).endswith("ismrmrdHeader"):
        raise SpinstreamError(f"MRD header: expected the root <ismrmrdHeader>, got <{root.tag}>")
    try:
        return ismrmrd.xsd.CreateFromDocument(raw)
    except Exception as error:  # the generated bindings raise whatever their converters raise
        raise SpinstreamError(f"MRD header is not valid: {error}") from error
