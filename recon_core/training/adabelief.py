"""AdaBelief with one step size per block of a parameter."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class AdaBelief(Optimizer):
    """AdaBelief (Zhuang et al., NeurIPS 2020) whose second moment is the sum over a block of the parameter.

    All numbers of a block then share their step size, so that a step keeps the direction of the averaged gradient
    within the block: what a projection onto a constraint afterwards needs. The length of a block's step is about the
    rate, however many numbers it holds.

    Args:
        groups: dictionaries of `params`, of the `block`: the axes over which a block extends (`()`: every number for
            itself), and of `lr` where it is not the common one.
        lr: common learning rate.
        betas: decay of the mean of the gradient and of its squared deviation from that mean.
        eps: added to the squared deviation.

    Raises:
        ValueError: a rate, a decay or `eps` is out of range, or a parameter lacks an axis of its block.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"expected decays from 0 to below 1, got {betas}")
        if not eps > 0:
            raise ValueError(f"expected a positive eps, got {eps}")
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "block": ()})
        for group in self.param_groups:
            if not group["lr"] >= 0:
                raise ValueError(f"expected a learning rate of at least 0, got {group['lr']}")
            for parameter in group["params"]:
                if not all(0 <= axis < parameter.ndim for axis in group["block"]):
                    raise ValueError(f"a parameter of shape {list(parameter.shape)} has no block {group['block']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step along the gradients; `closure` computes them again and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._advance(parameter, parameter.grad, group)
        return loss

    def _advance(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["mean"] = torch.zeros_like(parameter)
            state["deviation"] = torch.zeros_like(_block_sum(parameter, group["block"]))
        slow, slower = group["betas"]
        state["step"] += 1
        step, mean, deviation = int(state["step"]), state["mean"], state["deviation"]
        mean.lerp_(gradient, 1 - slow)
        deviation.lerp_(_block_sum((gradient - mean) ** 2, group["block"]), 1 - slower)
        length = (deviation / (1 - slower**step) + group["eps"]).sqrt()
        parameter.addcdiv_(mean, length, value=-group["lr"] / (1 - slow**step))


def _block_sum(values: Tensor, block: tuple[int, ...]) -> Tensor:
    return values.sum(block, keepdim=True) if block else values
