import copy

import pytest
import torch
from torch import nn

from recon_core.training.adabelief import AdaBelief


def _stepped(parameter, optimiser, gradient):
    parameter.grad = torch.tensor(gradient, dtype=parameter.dtype)
    optimiser.step()


def test_two_steps_are_what_the_formula_says():
    parameter = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimiser = AdaBelief([{"params": [parameter], "block": (0,)}], lr=0.1, betas=(0.5, 0.75))
    _stepped(parameter, optimiser, [2.0, 0.0])
    # Mean (1, 0), deviation 1^2 + 0^2: unbiased (2, 0) and 1.
    assert parameter.tolist() == pytest.approx([1 - 0.1 * 2 / 1, 2.0])
    _stepped(parameter, optimiser, [3.0, 4.0])
    # Mean (2, 2); v = 0.75 * 0.25 + 0.25 * (1 + 4) = 1.4375, unbiased by 1 - 0.75^2; unbiased mean (2, 2) / 0.75.
    step = 0.1 * (2 / 0.75) / (1.4375 / 0.4375) ** 0.5
    assert parameter.tolist() == pytest.approx([0.8 - step, 2 - step])


def test_blocks_are_independent_and_numbers_of_one_block_share_a_step_size():
    gradient = torch.tensor([[3.0, 4.0], [0.03, 0.04]])
    parameter = nn.Parameter(torch.zeros(2, 2))
    optimiser = AdaBelief([{"params": [parameter], "block": (1,)}], lr=1e-3)
    parameter.grad = gradient
    optimiser.step()
    # The rows differ a hundredfold in length, and their first steps do not; the direction is kept within a row.
    torch.testing.assert_close(parameter[0], parameter[1])
    torch.testing.assert_close(parameter[0, 0] / parameter[0, 1], torch.tensor(0.75))


def test_without_a_block_every_number_has_its_own_step_size():
    parameter = nn.Parameter(torch.zeros(2))
    optimiser = AdaBelief([{"params": [parameter]}], lr=1e-3)
    _stepped(parameter, optimiser, [5.0, 0.05])
    torch.testing.assert_close(parameter[0], parameter[1])


def test_resumed_training_equals_training_without_a_break(tmp_path):
    def fresh():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return model, AdaBelief(
            [{"params": [model.weight], "block": (1,)}, {"params": [model.bias], "lr": 0.03}], lr=0.1
        )

    def advance(model, optimiser, steps):
        for k in steps:
            loss = (model(torch.full((1, 4), 0.1 * k)) - k).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    model, optimiser = fresh()
    advance(model, optimiser, range(10))
    whole = copy.deepcopy(model.state_dict())
    model, optimiser = fresh()
    advance(model, optimiser, range(5))
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, tmp_path / "half")
    state = torch.load(tmp_path / "half", weights_only=True)
    model, optimiser = fresh()
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    advance(model, optimiser, range(5, 10))
    assert all(torch.equal(whole[name], value) for name, value in model.state_dict().items())


def test_parameters_without_a_gradient_stay():
    parameter = nn.Parameter(torch.ones(3))
    AdaBelief([{"params": [parameter]}]).step()
    assert parameter.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "learning rate of at least 0, got -1"),
        ({"betas": (0.9, 1.0)}, "below 1, got"),
        ({"eps": 0.0}, "positive eps, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaBelief([{"params": [nn.Parameter(torch.ones(3))]}], **settings)


def test_a_block_along_an_axis_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"shape \[3\] has no block \(1,\)"):
        AdaBelief([{"params": [nn.Parameter(torch.ones(3))], "block": (1,)}])
