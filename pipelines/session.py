"""Turns a definition and an MRD header into a chain that is ready to run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import platformdirs
import torch

from gadgets.gadget import Header, Session
from pipelines.chain import At, Chain
from pipelines.definition import DEFINITIONS, Definition
from pipelines.errors import PipelineError
from pipelines.executors.executor import Executor
from pipelines.header import without_patient
from pipelines.registry import Registry, installed_gadgets
from recon_core.cache import ContentCache
from recon_core.process_memory import total_memory

log = logging.getLogger("spinstream")

CACHE_SHARE = 0.125
"""Of the memory of the machine, or of its CUDA device where that is used and has less: room for some hundred
two-dimensional trajectories on a laptop, and small beside what a reconstruction needs."""

LEAST_CACHE = 1 << 28
"""For each of many sessions."""


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
        sessions: processes that share the memory of this machine.
    """

    device: str = "auto"
    seed: int = 0
    state_folder: Path = field(default_factory=lambda: platformdirs.user_state_path("spinstream"))
    definitions: tuple[Path, ...] = (DEFINITIONS,)
    registry: Registry = field(default_factory=installed_gadgets)
    cluster: str | None = None
    sessions: int = 1

    @cached_property
    def cache(self) -> ContentCache:
        """Of what sessions build for trajectories, by content; one for each process."""
        memory = total_memory()
        if self.torch_device().type == "cuda":
            memory = min(memory, torch.cuda.get_device_properties(0).total_memory)
        return ContentCache(max(int(CACHE_SHARE * memory / self.sessions), LEAST_CACHE))

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
    watch: Callable[[At | None], object] = lambda at: None,
) -> Chain:
    """A chain for one session.

    Args:
        definition: what to run.
        header: of the measurement; see `read_header`. Gadgets find nothing in it about the patient.
        site: of this machine.
        tell: takes what gadgets say to the person at the client.
        require_client: raises when the client is gone.
        turn: how sessions share the device; see `Session`.
        watch: see `Chain`.

    Raises:
        PipelineError: the definition cannot run.
        GadgetError: a gadget refuses the header.
        ClusterError: the cluster of this site is not there.
    """
    gadgets = definition.build(site.registry)
    session = Session(
        header=without_patient(header),
        device=site.torch_device(),
        seed=site.seed,
        state_folder=site.state_folder,
        tell=tell,
        cache=site.cache,
        require_client=require_client,
        turn=turn,
    )
    log.info("pipeline %s on %s, seed %d", definition.name, session.device, session.seed)
    executor = _executor(site)
    try:
        return Chain(gadgets, session, definition.outputs, executor, watch)
    except BaseException:
        if executor is not None:
            executor.close()
        raise


def _executor(site: Site) -> Executor | None:
    if site.cluster is None:
        return None
    from pipelines.executors.cluster import Cluster

    return Cluster(site.cluster, site.torch_device())
