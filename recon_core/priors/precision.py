"""Whether a device gains from bfloat16."""

from __future__ import annotations

import torch


def bfloat16_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions run faster in bfloat16 than in `dtype`; double precision stays what it is.

    A CPU without the instructions emulates them, several times slower than single precision; so do GPUs before Ampere,
    and torch counts that as support.
    """
    if dtype == torch.float64:
        return False
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_bfloat16()


def _cpu_has_bfloat16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, check, bool)()) for check in checks)
