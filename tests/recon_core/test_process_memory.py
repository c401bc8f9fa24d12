"""How much memory this process may have, in made-up control groups."""

from types import SimpleNamespace

import psutil
import pytest

from recon_core import process_memory
from recon_core.process_memory import available_memory, total_memory

GIB = 2**30


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """One of 64 GiB, 40 of them free, whose control groups lie in a folder."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=40 * GIB))
    monkeypatch.setattr(process_memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(process_memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(process_memory, "_left_of_own_limit", lambda: 64 * GIB)

    def member(line: str, **groups: dict[str, object]) -> None:
        (tmp_path / "membership").write_text(f"1:cpu:/\n{line}\n")
        for group, files in groups.items():
            folder = tmp_path / "cgroup" / group.replace("_", "/")
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in files.items():
                (folder / name).write_text(f"{content}\n")

    return member


def version_2(limit, used, reclaimable=0):
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 1\ninactive_file {reclaimable}"}


def version_1(limit, used, reclaimable=0):
    return {
        "memory.limit_in_bytes": limit,
        "memory.usage_in_bytes": used,
        "memory.stat": f"total_inactive_file {reclaimable}",
    }


def test_without_groups_the_machine_is_all(machine):
    assert (total_memory(), available_memory()) == (64 * GIB, 40 * GIB)


def test_a_container_has_what_its_limit_leaves(machine):
    machine("0::/box", box=version_2(8 * GIB, 5 * GIB, GIB))
    assert (total_memory(), available_memory()) == (8 * GIB, 4 * GIB)


def test_the_smallest_group_around_the_process_counts(machine):
    machine("0::/outer/inner", outer=version_2(8 * GIB, 7 * GIB), outer_inner=version_2("max", GIB))
    assert (total_memory(), available_memory()) == (8 * GIB, GIB)


def test_groups_of_the_first_version(machine):
    machine("4:memory:/box", memory_box=version_1(6 * GIB, 2 * GIB), memory=version_1(2**63 - 4096, 9 * GIB))
    assert (total_memory(), available_memory()) == (6 * GIB, 4 * GIB)


def test_inside_a_container_the_path_may_be_that_of_the_host(machine, tmp_path):
    machine("0::/only/the/host/sees/this")
    for name, content in version_2(3 * GIB, GIB).items():
        (tmp_path / "cgroup").mkdir(exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(str(content))
    assert (total_memory(), available_memory()) == (3 * GIB, 2 * GIB)


def test_a_limit_of_the_process_itself_counts(machine, monkeypatch):
    monkeypatch.setattr(process_memory, "_left_of_own_limit", lambda: GIB)
    assert available_memory() == GIB


def test_this_process_has_some():
    assert 2**20 < available_memory() <= total_memory()
