"""The demo: a simulated spiral head scan, streamed through the embedded server, and what came of it.

    python -m pipelines.demo FOLDER

Leaves in FOLDER: raw.h5 (the scan and its truth), images.h5 (what came back), contact_sheet.png, summary.txt.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import h5py
import ismrmrd
import matplotlib
import numpy as np
import numpy.typing as npt
import torch
from matplotlib import pyplot

from pipelines.errors import SpinstreamError
from pipelines.simulate import SimulationSettings, simulate
from recon_core.metrics import nrmse

PIPELINE = "cg_sense"
SCAN = SimulationSettings(
    trajectory="spiral", matrix=(192, 192), coils=8, shots=16, acceleration=2, readout_ms=10.0, dwell_us=4.0, b0="60",
    noise=0.02, slices=3, seed=1,
)  # fmt: skip
TITLES = {"truth": "truth", "preview": "preview (adjoint)", "image": "CG-SENSE"}

Pictures = dict[str, npt.NDArray[np.float64]]


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Simulates, serves, streams and shows."""
    try:
        run(folder)
    except SpinstreamError as error:
        raise click.ClickException(str(error)) from error


def run(folder: Path) -> None:
    """The demo, with its files in `folder`.

    Raises:
        SpinstreamError: a step failed; says which, and why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    raw, images = folder / "raw.h5", folder / "images.h5"
    began = time.perf_counter()
    click.echo("simulating a spiral head scan: 8 coils, R = 2, noise scan, field inhomogeneity ...")
    raw.unlink(missing_ok=True)
    simulate(raw, SCAN)
    simulated = time.perf_counter() - began
    with _server() as address:
        click.echo(f"streaming it to the server at {address} ...")
        began = time.perf_counter()
        notes = _replay(raw, address, images)
        streamed = time.perf_counter() - began
    pictures = _pictures(raw, images)
    _contact_sheet(pictures, folder / "contact_sheet.png")
    summary = _summary(simulated, streamed, notes, pictures)
    (folder / "summary.txt").write_text(summary)
    click.echo(f"\n{summary}\nlook at {folder / 'contact_sheet.png'}")


@contextmanager
def _server() -> Iterator[str]:
    """A `spinstream serve` process on a free port; yields HOST:PORT."""
    command = [sys.executable, "-m", "pipelines.cli", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            if not line.startswith("listening on "):
                raise SpinstreamError(f"the server did not start: {line or 'it ended without a word'}")
            yield line.split()[-1]
        finally:
            process.terminate()


def _replay(raw: Path, address: str, images: Path) -> list[str]:
    """Streams with the command that a user would type; returns what the server told."""
    command = [sys.executable, "-m", "pipelines.cli", "replay", str(raw), "--to", address, "--pipeline", PIPELINE]
    done = subprocess.run([*command, "-o", str(images), "--overwrite"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SpinstreamError(f"the replay failed: {done.stderr.strip()}")
    return [line.removeprefix("note: ") for line in done.stderr.splitlines() if line.startswith("note: ")]


def _pictures(raw: Path, images: Path) -> Pictures:
    """Magnitudes `[slice, y, x]` of truth, preview and image."""
    pictures: Pictures = {}
    with h5py.File(raw) as file:
        pictures["truth"] = np.abs(file["truth/image"][()]).astype(float)
    with closing(ismrmrd.Dataset(str(images), "dataset", False)) as dataset:
        for group in (name for name in dataset.list() if name.startswith("image_")):
            found = [dataset.read_image(group, i) for i in range(dataset.number_of_images(group))]
            kind = str(found[0].meta["SeriesDescription"])
            slices = sorted(found, key=lambda image: int(image.slice))
            pictures["preview" if "preview" in kind.lower() else "image"] = np.stack(
                [i.data[0, 0] for i in slices]
            ).astype(float)
    return pictures


def _contact_sheet(pictures: Pictures, path: Path) -> None:
    matplotlib.use("agg")
    rows = len(pictures["truth"])
    figure, axes = pyplot.subplots(rows, len(TITLES), figsize=(3.2 * len(TITLES), 3.2 * rows), squeeze=False)
    for column, (kind, title) in enumerate(TITLES.items()):
        for row, picture in enumerate(pictures[kind]):
            axes[row, column].imshow(picture, cmap="gray", vmin=0, vmax=np.percentile(picture, 99.8))
            axes[row, column].axis("off")
        axes[0, column].set_title(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _summary(simulated: float, streamed: float, notes: list[str], pictures: Pictures) -> str:
    truth = torch.as_tensor(pictures["truth"])
    errors = {kind: nrmse(torch.as_tensor(pictures[kind]), truth) for kind in ("preview", "image")}
    lines = [
        f"pipeline {PIPELINE}; a {SCAN.trajectory} scan of {SCAN.slices} slices {SCAN.matrix[0]} x {SCAN.matrix[1]}, "
        f"{SCAN.coils} coils, {SCAN.shots} shots / {SCAN.acceleration}, {SCAN.readout_ms:g} ms readouts, "
        f"field up to {SCAN.b0} Hz, noise {SCAN.noise:.0%}",
        f"simulated in {simulated:.1f} s; streamed, reconstructed and received in {streamed:.1f} s",
        *(f"magnitude NRMSE of the {kind}: {error:.3f}" for kind, error in errors.items()),
        *notes,
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
