"""The cases of real and independently simulated data: error against what they store, and time.

    python benchmarks/cases.py FOLDER

FOLDER holds brain_16ch/, spiral_b0_simulated/ and gre_3echo_phantom/ as the tests find them. Errors are NRMSE of
magnitudes after a fitted scale: inside the stored mask where there is one, over the whole field of view otherwise.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pipelines.replay import Replay, replay_here
from pipelines.session import Site
from pipelines.streams.file import RawFile
from recon_core.fourier import fft_centred, ifft_centred
from recon_core.metrics import nrmse

SERIES = {1: "cg_sense", 2: "preview"}


def reconstruct(raw_path: Path) -> tuple[dict[int, list[torch.Tensor]], float]:
    """Complex images `[y, x]` by series index, and the seconds that all of them took."""
    images: dict[int, list[torch.Tensor]] = {}

    def keep(image) -> None:  # noqa: ANN001
        images.setdefault(image.image_series_index, []).append(torch.from_numpy(image.data[0, 0].copy()))

    job = Replay(raw=raw_path, pipeline="cg_sense", parameters={"ImageExport.data_type": "complex64"})
    with RawFile(raw_path) as raw, tempfile.TemporaryDirectory() as state:
        began = time.perf_counter()
        site = Site(device="cpu", state_folder=Path(state))
        replay_here(job, raw, site, keep, lambda text: None, lambda items, total: items)
        return images, time.perf_counter() - began


def stored(path: Path, name: str) -> torch.Tensor:
    """An array of a case; its first axis is x, ours is y."""
    return torch.from_numpy(np.load(path)[name]).transpose(-1, -2)


def half_pixel_shift(image: torch.Tensor) -> torch.Tensor:
    """The image on a grid that lies half a pixel further in both axes, as the truth of the simulated spiral does."""
    y, x = (torch.arange(n) - n // 2 for n in image.shape)
    ramp = torch.exp(1j * torch.pi * (y[:, None] / len(y) + x / len(x)))
    return ifft_centred(fft_centred(image, (-2, -1)) * ramp, (-2, -1))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    brain, spiral, gre = (folder / name for name in ("brain_16ch", "spiral_b0_simulated", "gre_3echo_phantom"))
    maps, truth = brain / "brain_invivo_local16ch_maps.npz", spiral / "truth_slc90.npz"
    echoes = gre / "02_GRE_3echoes_b0map.npz"
    cases = {
        "brain, 16 coils": (
            brain / "brain_invivo_local16ch.h5",
            [stored(maps, "image_combined")],
            stored(maps, "mask"),
        ),
        "spiral, clean": (spiral / "spiralout_clean_slc90.h5", [stored(truth, "image")], None),
        "spiral, 70 MHz": (spiral / "spiralout_Susc70Mhz_slc90.h5", [stored(truth, "image")], None),
        "three echoes": (gre / "02_GRE_3echoes.h5", list(stored(echoes, "image")), stored(echoes, "mask")),
    }
    for name, (raw, references, mask) in cases.items():
        images, seconds = reconstruct(raw)
        for index, pipeline in SERIES.items():
            found = [half_pixel_shift(x) if "spiral" in name else x for x in images[index]]
            errors = [nrmse(x.abs(), r.abs(), mask) for x, r in zip(found, references, strict=True)]
            print(f"{name:16s} {pipeline:9s} NRMSE {', '.join(f'{e:.5f}' for e in errors)}")
        print(f"{name:16s} both in {seconds:.1f} s")


if __name__ == "__main__":
    main()
