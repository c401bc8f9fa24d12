"""Model cards: what a prior learnt from, how, under which licence, and how well it does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Source:
    """Images that a prior learnt from.

    Args:
        name: of the data.
        licence: that they are under.
        citation: what to cite.
    """

    name: str
    licence: str
    citation: str


@dataclass(frozen=True)
class Card:
    """What a user should know of a prior.

    Args:
        summary: one line of what it is for.
        licence: of the weights.
        sources: of the training images.
        objective: "clean" or "sure".
        steps: of the optimiser.
        seed: of every random draw.
        command: that trained it.
        metrics: figures on held-out images, with names that tell what was measured.
        limits: what it should not be used for.
        denoiser: kind of network, and the noise that it knows of images on which scale.
    """

    summary: str
    licence: str = "not stated"
    sources: tuple[Source, ...] = ()
    objective: str = "clean"
    steps: int = 0
    seed: int = 0
    command: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    limits: str = ""
    denoiser: str = ""

    def to_json(self) -> str:
        """As text for the weights' file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Card:
        """The card that `to_json` wrote.

        Raises:
            ValueError: not such a text.
        """
        try:
            entries: dict[str, Any] = json.loads(text)
            sources = tuple(Source(**source) for source in entries.pop("sources"))
            return cls(sources=sources, **entries)
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as error:
            known = ", ".join(entry.name for entry in fields(cls))
            raise ValueError(f"expected a model card with {known}: {error}") from error

    def to_markdown(self, name: str) -> str:
        """As a page to read."""
        lines = [f"# {name}", "", self.summary, "", f"Licence of the weights: {self.licence}", ""]
        lines += [f"Denoiser: {self.denoiser}", ""] if self.denoiser else []
        sources = [f"* {s.name} ({s.licence}). {s.citation}" for s in self.sources]
        lines += ["Learnt from:", *sources, ""] if sources else ["Learnt from: not stated", ""]
        lines += [f"Objective {self.objective}, {self.steps} steps, seed {self.seed}.", "", f"    {self.command}", ""]
        if self.metrics:
            lines += ["| on held-out images | |", "| --- | --- |"]
            lines += [f"| {key} | {value:.4g} |" for key, value in self.metrics.items()] + [""]
        return "\n".join([*lines, *([f"Limits: {self.limits}", ""] if self.limits else [])])
