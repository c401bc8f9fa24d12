"""How far an image may be off that was found together with its field."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recon_core.solvers.blind_problem import BlindProblem
from recon_core.solvers.run import Estimate, Run

_ITERATIONS = 5

_IMAGE_ERROR_PER_DEVIATION = 2.0
"""Errors of images in terms of the deviation among four samples that were drawn in the true field.

Root mean square on three validation scans: 1.6, 1.9 and 2.0; rather too much than too little. With few steps and priors
of heads the samples of `decomposed_diffusion` are too alike; what 90 % intervals cover with it, on other heads, is in
benchmarks/RESULTS.md.
"""


def with_open_field(problem: BlindProblem, found: Estimate, fields: Tensor, level: float, run: Run) -> Estimate:
    """The same image, with a deviation that holds that of its field too.

    By the law of total variance: to the variance in a known field, of which the samples tell, comes that of the mean
    image among fields. A field of its own for each sample makes their mean worse (benchmarks/RESULTS.md), and takes as
    many samples as fields. So the mean image is brought to the data once more, and again in each of the other fields,
    by a few iterations from where it is, and by how much it moves is what counts.

    A smooth change of the field moves phases to first order, and magnitudes to second: where the point k of k-space is
    visited at the time tau(k), dx = F^H (-2 pi i tau) F dpsi x has the phase of the image turned by a quarter. That is
    why images are solved for, not foretold.

    Args:
        problem: with known coil maps, in the units of the estimate.
        found: `[y, x]`, of several samples that were drawn in one field.
        fields: theta of that field, and of at least one draw about it, `[1 + draw, function]`; what leaves the range of
            the problem's encoding is brought back into it.
        level: how near to where it is the image is held, standard deviation of a real channel.
        run: asked before each draw, whose steps follow those of the estimate. The first is looked at even where it says
            no: a deviation that silently held nothing of the field would be far too small.
    """
    assert found.deviation is not None
    others = fields[1:]
    first = _brought_to_the_data(problem, found.image, fields[0], level)
    moved = list[Tensor]()
    for theta in others:
        going = run.go_on(found.steps + len(moved), found.planned + len(others))
        if moved and not going:
            break
        moved.append((_brought_to_the_data(problem, found.image, theta, level) - first).abs().square())
    variance = (_IMAGE_ERROR_PER_DEVIATION * found.deviation).square() + torch.stack(moved).mean(0)
    steps, planned = found.steps + len(moved), found.planned + len(others)
    return replace(found, deviation=variance.sqrt(), steps=steps, planned=planned)


def _brought_to_the_data(problem: BlindProblem, image: Tensor, theta: Tensor, level: float) -> Tensor:
    """In a field, theta `[function]`, from an image `[y, x]` that may be of another."""
    given = problem.given(problem.start._replace(field=theta))
    return given.tempered(image[None], level, image[None], _ITERATIONS)[0]
