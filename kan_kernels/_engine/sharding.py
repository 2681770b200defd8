"""How DTensor may shard our ops over ranks: by rows, by inputs, by outputs, or not at all.

An op is written as einsum has it, a letter for each dimension of its tensors: b rows, i inputs, o outputs;
what is "." stays whole. Along a letter every tensor that has it is sharded, and a result without it is a sum
of which each rank has a part. That follows from the trilinear form (`_engine/autograd.py`). `kan_network` is
not here: layers of DTensors are called one by one (`network.backend_of`).
"""

import warnings
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import torch

from .._core.on_import import after_import
from ..backends import with_op

# Arguments -> results. "+" is a term of the sum, "*" all dimensions of an image; behind "?" stand the
# arguments without which a result is empty.
RULES = {
    "kan_linear": "bi bi i.o io +o i. -> bo",
    "kan_linear_grad_input": "bi i.o io bo i. -> bi",
    "kan_linear_grad_weight": "bi bi bo i. i.o -> i.o io?base",
    "kan_linear_backward": "bi i.o io bo i. -> bi i.o io?base",
    "kan_activation": "bi bi i.o io i. -> bio",
    "kan_activation_grad_input": "bi i.o io bio i. -> bi",
    "kan_activation_grad_weight": "bi bi bio i. -> i.o io?base",
    "kan_activation_backward": "bi i.o io bio i. -> bi i.o io?base",
    "kan_conv": "bi* i.*o i*o +o i. -> bo*",
    "kan_conv_backward": "bi* i.*o i*o bo* i. -> bi*?need_x i.*o?need_weight i*o?need_weight,base",
    "edge_gram": "bi bi i. -> i.. i..",
    "edge_gram_grad_input": "bi bi i. i.. i.. -> bi",
    "edge_cross_gram": "bi bi i. i. -> i..",
    # means over the rows, of which no rank may have a part
    "edge_moments": ".i i.. i. i. -> i. i. i.. i..",
    "edge_moments_backward": ".i i.. i. i. i. i. i. i.. i.. -> .i?need_x i..?need_weight i.?need_weight,base",
    "edge_l1": ".i i.o io i. -> io",
    "edge_l1_backward": ".i i.o io io i. -> .i?need_x i.o?need_weight io?need_weight,base",
    # a norm over the inputs, and at most eight outputs
    "layer_norm_rbf": "b. . . .. .. . .. -> b.",
    "layer_norm_rbf_backward": "b. . . .. .. b. .. -> b.?need_x . . .. ..?base .",
}
_Way = tuple[list[Any], list[Any]]


@dataclass(slots=True)
class Term:
    """A tensor of an op: its letters, whether it is added to a sum, and what it is empty without."""

    letters: str
    added: bool
    needs: list[str]

    @classmethod
    def of(cls, text: str) -> "Term":
        """Read an entry of the tables."""
        letters, _, needs = text.partition("?")
        return cls(letters.lstrip("+"), letters.startswith("+"), needs.split(",") if needs else [])

    def of_image(self, dims: int) -> str:
        """Return a letter for each dimension, where images have so many."""
        return self.letters.replace("*", "." * dims)


def placements(op: Any, rule: str, *args: Any) -> list[_Way]:
    """Return how results and arguments of a call may lie on a mesh dimension, for `register_sharding`.

    Args:
        op: the overload, whose schema has the names of the arguments.
        rule: an entry of the tables.
        args: those of the call, tensors as DTensor describes them.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    schema = op._schema.arguments[: len(args)]
    values = {argument.name: arg for argument, arg in zip(schema, args, strict=True)}
    before, behind = ([Term.of(text) for text in side.split()] for side in rule.split(" -> "))
    left = iter(before)
    terms = [next(left) if "Tensor" in str(argument.type) else None for argument in schema]
    taken = [None if arg is None else term for term, arg in zip(terms, args, strict=True)]
    dims = args[0].ndim - 2
    given = [None if term is None else term.of_image(dims) for term in taken]
    results = [term.of_image(dims) if all(values[name] for name in term.needs) else "" for term in behind]
    ways: list[_Way] = [([Replicate()] * len(results), [None if t is None else Replicate() for t in given])]
    if any(t is not None and len(t) != arg.ndim for t, arg in zip(given, args, strict=True)):
        return ways  # networks side by side
    for letter in "b" if values.get("groups", 1) != 1 else "bio":
        if not any(t is not None and letter in t for t in given):
            continue
        summed = not any(letter in t for t in results)

        def place(letters: str, other: Any, letter: str = letter) -> Any:
            return Shard(letters.index(letter)) if letter in letters else other

        parts = [
            None
            if t is None
            else place(t, Partial() if term is not None and term.added and summed else Replicate())
            for t, term in zip(given, taken, strict=True)
        ]
        ways.append(([place(t, Partial() if t else Replicate()) for t in results], parts))
    return ways


def _register(_: ModuleType) -> None:
    try:
        _register_all()
    except (ImportError, AttributeError, TypeError) as error:  # torch calls it experimental
        warnings.warn(
            f"kan_kernels: torch {torch.__version__} takes no sharding rules ({error}); the ops do not run "
            "on DTensor",
            RuntimeWarning,
            stacklevel=2,
        )


def _register_all() -> None:
    from torch.distributed.tensor.experimental import register_sharding

    for name, rule in RULES.items():
        for backend in with_op(name):
            op = getattr(getattr(torch.ops, backend.NAMESPACE), name).default
            register_sharding(op)(partial(placements, op, rule))


def register() -> None:
    """Tell DTensor, as soon as somebody imports it, which takes longer than all of ours."""
    if torch.distributed.is_available():
        after_import("torch.distributed.tensor", _register)
