"""The registry of providers, in the order of the tables."""

from __future__ import annotations

from .accelerated import AcceleratedEfficientKAN
from .base import Model, Provider
from .bases import FORMS, Form, FormCompiled, OursForm
from .mlp import ProtocolMLP, SameParameterMLP, SameWidthMLP
from .ours import Ours
from .peers import EfficientKAN, FastKAN, FlashKAN, InKAN, PyKAN
from .unfused import ClosedForm, ClosedFormCompiled, Textbook

PROVIDERS: dict[str, Provider] = {
    p.key: p
    for p in (
        Ours("native"),
        Ours("reference", slow=True),
        SameParameterMLP(),
        SameWidthMLP(),
        ProtocolMLP(),
        ClosedForm(),
        ClosedFormCompiled(),
        Textbook(),
        EfficientKAN(),
        AcceleratedEfficientKAN(),
        PyKAN(),
        InKAN(),
        FlashKAN(),
        FastKAN(),
        *(make(name) for name in FORMS for make in (OursForm, Form, FormCompiled)),
    )
}


def find_provider(key: str) -> Provider:
    """The provider called ``key``; ValueError lists the known names."""
    if key not in PROVIDERS:
        raise ValueError(f"unknown provider {key!r}; known: {', '.join(PROVIDERS)}")
    return PROVIDERS[key]


__all__ = ["PROVIDERS", "Model", "Provider", "find_provider"]
