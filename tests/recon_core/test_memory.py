import pytest
import torch

from recon_core.operators import memory
from recon_core.operators.memory import Batches, plan_batches

CPU = torch.device("cpu")


@pytest.fixture
def free(monkeypatch):
    """Sets the free memory, and takes the bound of arrays on a processor away."""
    monkeypatch.setattr(memory, "LARGEST", 2**60)
    return lambda size: monkeypatch.setattr(memory, "free_memory", lambda device: size)


def at_once(*arguments):
    batches = plan_batches(*arguments)
    return batches.images, batches.coils


def test_all_at_once_where_there_is_room(free):
    free(2**30)
    assert at_once(3, 8, 2**10, CPU) == (3, 8)


def test_images_are_split_before_coils(free):
    free(2 * memory.HELD * 2**10 * 17)  # half of it holds 17 coils
    assert at_once(3, 8, 2**10, CPU) == (2, 8)
    assert at_once(3, 20, 2**10, CPU) == (1, 10)  # not 17 and 3


def test_says_what_does_not_fit(free):
    free(2**20)
    with pytest.raises(MemoryError, match=r"needs 4 MiB, more than 50% of the 1 MiB that are free on cpu"):
        plan_batches(1, 1, 2**20, CPU)


def test_arrays_on_a_processor_stay_small():
    assert at_once(10, 20, memory.LARGEST // 4, CPU) == (1, 4)
    assert at_once(10, 5, memory.LARGEST // 16, CPU) == (3, 5)
    assert at_once(10, 20, memory.LARGEST * 2, CPU) == (1, 1)


def test_words():
    assert str(Batches(1, 8, 2**20, 2**30)) == "1 image x 8 coils at once, 1 MiB of 1024 MiB free"
    assert str(Batches(2, 1, 2**20, 2**30)) == "2 images x 1 coil at once, 1 MiB of 1024 MiB free"


def test_free_memory_is_less_than_all_of_it():
    assert 2**20 < memory.free_memory(CPU) < 2**50
