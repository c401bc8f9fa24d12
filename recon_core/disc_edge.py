"""How round and how sharp a phantom's disc is."""

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

RAYS, STEP = 360, 0.1  # directions, and pixels between points of a ray
SEARCH = (0.75, 1.2)  # of the expected radius, where the edge is looked for
INSIDE = (0.75, 0.85)  # of the expected radius, where the disc's brightness is taken


class DiscEdge(NamedTuple):
    """Of the outer edge, which is where an image falls most steeply along a ray.

    Attributes:
        radius: in pixels, of the circle that fits best.
        out_of_round: root mean square distance of the edge from that circle, in pixels.
        sharpness: the fall within one pixel at the edge, relative to the disc's brightness inside, median over rays.
    """

    radius: float
    out_of_round: float
    sharpness: float


def disc_edge(
    image: Tensor, centre: tuple[float, float], radius: float, leave_out_deg: tuple[float, float]
) -> DiscEdge:
    """Along rays from the middle of a disc.

    Args:
        image: real `[y, x]`.
        centre: about, (y, x) in pixels; the circle's own centre is fitted.
        radius: about, in pixels.
        leave_out_deg: from and to which direction the disc has no plain edge, from +x towards +y, 0 to 360.
    """
    degrees = torch.arange(RAYS, dtype=torch.float64) * 360 / RAYS
    angles = torch.deg2rad(degrees[(degrees < leave_out_deg[0]) | (degrees > leave_out_deg[1])])
    directions = torch.stack([angles.sin(), angles.cos()], -1)
    origin = torch.tensor(centre, dtype=torch.float64)

    def along(distance: Tensor) -> Tensor:
        points = origin + directions[:, None] * distance[:, None]
        return torch.from_numpy(map_coordinates(image.double().numpy(), points.movedim(-1, 0).numpy(), order=3))

    distance = torch.arange(SEARCH[0] * radius, SEARCH[1] * radius, STEP, dtype=torch.float64)
    fall, place = (along(distance - 0.5) - along(distance + 0.5)).max(1)
    edge = distance[place]
    inside = along(torch.linspace(INSIDE[0] * radius, INSIDE[1] * radius, 20, dtype=torch.float64)).median(1).values
    # A circle about a centre that lies a little off: radius + dy sin + dx cos.
    design = torch.cat([torch.ones_like(edge)[:, None], directions], 1)
    circle = torch.linalg.lstsq(design, edge[:, None]).solution[:, 0]
    out_of_round = (edge - design @ circle).square().mean().sqrt()
    return DiscEdge(float(circle[0]), float(out_of_round), float((fall / inside).median()))
