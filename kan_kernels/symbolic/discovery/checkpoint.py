"""What a search writes to its file, and takes from it."""

import time
from pathlib import Path
from typing import Any

import torch

from ..._core import files
from . import networks
from .laws import Law

FORMAT = 2


class Checkpoint:
    """A file of one search: plain data and tensors, replaced in one go."""

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity

    def save(self, search: Any) -> None:
        """Write where a search is."""
        state = {
            "format": FORMAT, "identity": self.identity, "opened": search.opened, "stage": search.stage,
            "structures": search.structures, "work": search.work, "networks": search.networks,
            "least": search.least,
            "seconds": time.monotonic() - search.start + search.before,
            "shapes": search.shapes, "order": search.order, "grouped": list(search.grouped),
            "laws": [law.state() for law in search.pool.laws.values()],
            "started": {n: [trained.state() for trained in own] for n, own in search.started.items()},
        }  # fmt: skip
        with files.replacing(self.path) as part:
            torch.save(state, part)

    def load(self, search: Any) -> None:
        """Put a search where the file's was.

        Raises:
            ValueError: it is none, or of another search.
        """
        try:
            state = torch.load(self.path, weights_only=True)
        except Exception as error:
            raise ValueError(f"checkpoint: {str(self.path)!r} is no file of discover's: {error}") from error
        if not isinstance(state, dict) or state.get("format") != FORMAT or "laws" not in state:
            raise ValueError(f"checkpoint: {str(self.path)!r} is no file of discover's")
        if state["identity"] != self.identity:
            raise ValueError(
                f"checkpoint: {str(self.path)!r} is of other data, names, seeds, shapes or options"
            )
        for name in ("opened", "stage", "structures", "work", "networks", "least", "shapes", "order"):
            setattr(search, name, state[name])
        search.before, search.grouped = state["seconds"], set(state["grouped"])
        for law in map(Law.from_state, state["laws"]):
            search.pool.laws[law.skeleton()] = law
        for number, own in state["started"].items():
            shape = search.shapes[number]
            search.started[number] = [networks.restored(search.data, shape, each) for each in own]
