"""The registry of providers, in the order of the tables."""

from __future__ import annotations

from .base import Model, Provider
from .mlp import MLPS
from .ours import Ours
from .peers import PEERS
from .unfused import ClosedForm, ClosedFormCompiled, Textbook

OURS = Ours("native"), Ours("reference", slow=True)
UNFUSED = ClosedForm(), ClosedFormCompiled(), Textbook()
PROVIDERS: dict[str, Provider] = {p.key: p for p in (*OURS, *MLPS, *UNFUSED, *PEERS)}


def find_provider(key: str) -> Provider:
    """The provider called ``key``; ValueError lists the known names."""
    if key not in PROVIDERS:
        raise ValueError(f"unknown provider {key!r}; known: {', '.join(PROVIDERS)}")
    return PROVIDERS[key]


__all__ = ["PROVIDERS", "Model", "Provider", "find_provider"]
