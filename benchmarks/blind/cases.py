"""Blind reconstruction of other people's spirals, beside no map and the known one: figures, and a picture.

    python -m benchmarks.blind.cases FOLDER [--cases simulated phantom]

FOLDER holds spiral_b0_simulated/ and spiral_phantom_20ch/ as the tests find them. The truth of the simulated spiral
lies half a pixel off the FFT grid, and the centre frequency of the real one is not that of its field map: see
`benchmarks.field_map_cases`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from torch import Tensor

from benchmarks.field_map_cases import DISC, NOTCH_DEG, reconstruct, shifted, stored
from recon_core.disc_edge import disc_edge
from recon_core.metrics import nrmse

PICTURE = Path(__file__).parent.parent / "pictures" / "blind_cases.png"
PHANTOM = {"CoilMaps.calibration": "48"}
FAR = {
    "BlindSolver.limit": "1200",
    "BlindSolver.seek_shim": "true",
    "BlindSolver.fields": "polynomial",
    "BlindSolver.samples": "1",
}
OFFSET_HZ = 450.0
OBJECT = 0.1  # of the brightest pixel of the truth


def simulated(folder: Path, work: Path) -> dict[str, Tensor]:
    """An independent Bloch simulation of a head with one coil; prints errors against the truth."""
    raw, truth = shifted(folder / "spiralout_Susc70Mhz_slc90.h5", work), stored(folder / "truth_slc90.npz", "image")
    field_hz = -stored(folder / "truth_slc90.npz", "b0_hz_Susc70Mhz")
    np.savez(work / "head.npz", -field_hz.numpy())
    known = {"FieldMap.file": str(work / "head.npz"), "FieldMap.field_sign": "+"}
    found = _timed(raw, "blind_red_diff")
    images = {
        "no map": reconstruct(raw)["image"].abs(),
        "blind": found["image"].abs(),
        "known map": reconstruct(raw, "diffusion", **known)["image"].abs(),
    }
    for name, image in images.items():
        print(f"simulated, {name:10s} NRMSE {nrmse(image, truth):.4f}")
    inside = truth > OBJECT * truth.max()
    error = (found["field map"].real - field_hz)[inside]
    print(f"simulated, field of {_rms(field_hz[inside]):.1f} Hz found to within {_rms(error):.1f} Hz")
    return {**images, "found (Hz)": found["field map"].real * inside, "true (Hz)": field_hz * inside}


def phantom(folder: Path, work: Path) -> dict[str, Tensor]:
    """A real disc in a bad shim; prints how round and sharp it is, and how far the field is from the measured one."""
    raw, measured = folder / "acr_shimoff_20ch.h5", folder / "acr_shimoff_20ch_b0map.npz"
    mask, field_hz = stored(measured, "mask"), -stored(measured, "b0_hz") + OFFSET_HZ
    np.savez(work / "disc.npz", field_map_hz=stored(measured, "b0_hz").numpy(), mask=mask.numpy())
    known = {"FieldMap.file": str(work / "disc.npz"), "FieldMap.field_sign": "+", "FieldMap.offset": str(OFFSET_HZ)}
    found = _timed(raw, "blind_joint", **PHANTOM, **FAR)
    images = {
        "no map": reconstruct(raw, **PHANTOM)["image"].abs(),
        "blind": found["image"].abs(),
        "known map": reconstruct(raw, **PHANTOM, **known)["image"].abs(),
    }
    for name, image in images.items():
        edge = disc_edge(image, *DISC, NOTCH_DEG)
        print(
            f"phantom, {name:10s} out of round {edge.out_of_round:.2f} px, edge falls by {edge.sharpness:.0%} per pixel"
        )
    error = (found["field map"].real - field_hz)[mask]
    print(f"phantom, field of {_rms(field_hz[mask]):.0f} Hz found to within {_rms(error):.0f} Hz")
    return {**images, "found (Hz)": found["field map"].real * mask, "measured (Hz)": field_hz * mask}


def _timed(raw: Path, pipeline: str, **settings: str) -> dict[str, Tensor]:
    began = time.perf_counter()
    found = reconstruct(raw, pipeline, **settings)
    print(f"{pipeline}: {time.perf_counter() - began:.0f} s")
    return found


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def draw(rows: list[dict[str, Tensor]]) -> None:
    """A row for each case, magnitudes in grey and fields in colour, both fields on one scale."""
    figure, axes = plt.subplots(len(rows), 5, figsize=(16, 3.4 * len(rows)), squeeze=False)
    for row, images in zip(axes, rows, strict=True):
        limit = float(list(images.values())[-1].abs().max())
        for axis, (name, image) in zip(row, images.items(), strict=True):
            if "Hz)" in name:
                shown = axis.imshow(image.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
                figure.colorbar(shown, ax=axis, shrink=0.7)
            else:
                axis.imshow(image.numpy(), cmap="gray", vmin=0, vmax=float(image.quantile(0.998)))
            axis.set_title(name, fontsize=9)
            axis.axis("off")
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=90)


CASES = {"simulated": ("spiral_b0_simulated", simulated), "phantom": ("spiral_phantom_20ch", phantom)}


def main() -> None:
    """Prints the figures and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [solve(given.folder / folder, Path(work)) for folder, solve in map(CASES.__getitem__, given.cases)]
    draw(rows)


if __name__ == "__main__":
    main()
