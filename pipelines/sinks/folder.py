"""Folders that sinks write into."""

from __future__ import annotations

from pathlib import Path


def output_folder(folder: Path, suffix: str, overwrite: bool) -> Path:
    """The folder, made where it does not exist. Nothing in it is ever deleted.

    Raises:
        FileExistsError: files with that suffix are in it already, and they may not be overwritten.
    """
    folder.mkdir(parents=True, exist_ok=True)
    earlier = next(folder.glob(f"*{suffix}"), None)
    if earlier is not None and not overwrite:
        raise FileExistsError(
            f"{folder} already holds {suffix} files, {earlier.name} for one; they are not overwritten"
        )
    return folder
