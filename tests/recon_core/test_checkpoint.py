import argparse
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from recon_core.priors.checkpoint import as_tensors, load_tensors, read_checkpoint

both_formats = pytest.mark.parametrize("archive", [True, False], ids=["archive", "before torch 1.6"])


def saved(thing, path, archive=True):
    torch.save(thing, path, _use_new_zipfile_serialization=archive)
    return path


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@both_formats
def test_data_come_back(tmp_path, archive):
    model, optimiser = {"w": torch.arange(3.0)}, {"state": {0: {"step": 4}}, "name": "Adam"}
    found = read_checkpoint(saved([model, optimiser, 3, 0.5, None], tmp_path / "a.pth", archive))
    assert torch.equal(found[0]["w"], torch.arange(3.0))
    assert found[1:] == [optimiser, 3, 0.5, None]


@both_formats
def test_code_is_refused_and_does_not_run(tmp_path, archive):
    path = saved([{"w": torch.ones(3)}, Trap(tmp_path / "ran")], tmp_path / "a.pth", archive)
    with pytest.raises(ValueError, match=r"a\.pth holds pickled Python objects or code \(.*expected tensors, numbers"):
        read_checkpoint(path)
    assert not (tmp_path / "ran").exists()
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()  # the trap does work


@pytest.mark.parametrize("thing", [argparse.Namespace(features=3), nn.Linear(2, 2)])
def test_objects_are_refused_by_their_name(tmp_path, thing):
    with pytest.raises(ValueError, match=rf"objects or code \({type(thing).__module__}\.{type(thing).__name__}\)"):
        read_checkpoint(saved({"w": torch.ones(3), "object": thing}, tmp_path / "a.pth"))


@both_formats
@pytest.mark.parametrize("left", [0.4, 0.99])
def test_a_truncated_file_is_refused(tmp_path, archive, left):
    path = saved({"w": torch.ones(3000)}, tmp_path / "a.pth", archive)
    path.write_bytes(path.read_bytes()[: round(left * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"a\.pth is damaged"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", [b"", b"hello\n", bytes(100), pickle.dumps({"w": 1})])
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "a.pth").write_bytes(text)
    with pytest.raises(ValueError, match=r"a\.pth is not a checkpoint"):
        read_checkpoint(tmp_path / "a.pth")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.pth"):
        read_checkpoint(tmp_path / "b.pth")
    with pytest.raises(IsADirectoryError):
        read_checkpoint(tmp_path)


def test_the_prefix_of_data_parallel_is_taken_off():
    assert as_tensors(nn.DataParallel(nn.Linear(2, 2)).state_dict(), "a.pth").keys() == {"weight", "bias"}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (torch.ones(3), r"a\.pth: expected a state dict \(names to tensors\), got a tensor \[3\]"),
        ({}, "expected a state dict .* got dict"),
        ({"epoch": 3}, "expected a state dict .* got 'epoch': int"),
        ({0: torch.ones(3)}, r"expected a state dict .* got 0: a tensor \[3\]"),
        ({"v": torch.ones(3), "w": torch.tensor([1, torch.nan])}, r"a\.pth: w is not finite"),
    ],
)
def test_what_is_no_state_dict_is_refused(found, message):
    with pytest.raises(ValueError, match=message):
        as_tensors(found, "a.pth")


def test_tensors_must_be_those_that_the_module_needs():
    module, weight, bias = nn.Linear(2, 3), torch.ones(3, 2), torch.full((3,), 2.0)
    load_tensors(module, {"bias": bias, "weight": weight}, "a.pth")
    assert module(torch.ones(2)).tolist() == [4, 4, 4]
    with pytest.raises(ValueError, match=r"a\.pth: expected the 2 tensors of Linear, got 1; 1 missing, such as bias"):
        load_tensors(module, {"weight": weight}, "a.pth")
    with pytest.raises(ValueError, match="got 3; 1 unknown, such as gain"):
        load_tensors(module, {"weight": weight, "bias": bias, "gain": bias}, "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: expected weight \[3, 2\], got \[2, 3\]"):
        load_tensors(module, {"weight": weight.T, "bias": bias}, "a.pth")
