"""Gradients of the contractions' ops: torch.compile and torch.export see an op, and no Function."""

from typing import Any

import torch

from .._core import fakes
from .._core.problem import Spec
from ..backends import BACKENDS
from .autograd import Backward, Forward, Input, Weight


def _register(namespace: str, backend: Any, summed: bool) -> None:
    """Give the four ops of a backend the same gradients as the Functions."""
    for function in (Forward, Input, Weight, Backward):
        op = function.OP if summed else function.ACTIVATION_OP
        count = fakes.TENSORS[op]
        bias = [] if summed or function is not Forward else [4]  # where the op lacks a tensor of the Function

        def setup_context(ctx, inputs, output, function=function, count=count, bias=bias):
            tensors = list(inputs[:count])
            for place in bias:
                tensors.insert(place, None)
            functions, order, base, derivative, basis = inputs[count : count + 5]
            numbers = functions, order, base, derivative, basis  # `like` behind them changes no value
            spec = Spec(*numbers, backend, summed=summed)
            function.setup_context(ctx, (*tensors, spec), output)

        def backward(ctx, *gradients, function=function, count=count, bias=bias):
            more = 6 if function is Weight and summed else 5
            found = list(function.backward(ctx, *gradients))
            for place in bias:
                del found[place]
            return *found[:count], *(None,) * more

        torch.library.register_autograd(f"{namespace}::{op}", backward, setup_context=setup_context)


for _backend in BACKENDS.values():
    if _backend.NAMESPACE is not None:
        _register(_backend.NAMESPACE, _backend, summed=True)
        _register(_backend.NAMESPACE, _backend, summed=False)
