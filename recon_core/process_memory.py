"""How much memory this process may have: of the machine, of its container (cgroup), of a limit of its own."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


class _Files(NamedTuple):
    limit: str
    used: str
    reclaimable: str
    """In memory.stat: file pages that the kernel takes back first."""


VERSION_1 = _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = _Files("memory.max", "memory.current", "inactive_file")


def total_memory() -> int:
    """Bytes of the machine, or of the smallest container around this process."""
    return min([int(psutil.virtual_memory().total), *(limit for limit, _ in _containers())])


def available_memory() -> int:
    """Bytes that this process can still have."""
    available = int(psutil.virtual_memory().available)
    return max(0, min([available, _left_of_own_limit(), *(limit - used for limit, used in _containers())]))


def _left_of_own_limit() -> int:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return int(psutil.virtual_memory().total)
    return int(limit - psutil.Process().memory_info().data)


def _containers() -> Iterator[tuple[int, int]]:
    """Limit and use of each control group around this process that has a limit; none where there are no such groups."""
    try:
        memberships = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for membership in memberships:
        _, controllers, path = membership.split(":", 2)
        if not controllers:
            yield from _limits(CGROUPS, path, VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _limits(CGROUPS / "memory", path, VERSION_1)


def _limits(root: Path, path: str, files: _Files) -> Iterator[tuple[int, int]]:
    """From the group itself up to the root; inside a container, the path may be one that only its host sees."""
    group = root / path.strip("/")
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            return
        try:
            limit = int((folder / files.limit).read_text())
            used = int((folder / files.used).read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such group here, or "max"
            continue
        yield limit, used - int(stat.get(files.reclaimable, 0))
