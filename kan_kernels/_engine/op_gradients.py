"""Gradients of the contractions' ops: torch.compile and torch.export see an op, and no Function."""

from types import ModuleType
from typing import Any

import torch

from .._core import fakes
from .._core.problem import Spec
from ..backends import with_op
from .autograd import Backward, Forward, Input, Weight


def _register(op: str, backend: ModuleType, function: Any, summed: bool) -> None:
    """Give an op of a backend the same gradients as the Function."""
    count = fakes.TENSORS[op]
    bias = [] if summed or function is not Forward else [4]  # where the op lacks a tensor of the Function

    def setup_context(ctx, inputs, output):
        tensors = list(inputs[:count])
        for place in bias:
            tensors.insert(place, None)
        functions, order, base, derivative, basis = inputs[count : count + 5]
        numbers = functions, order, base, derivative, basis  # `like` behind them changes no value
        spec = Spec(*numbers, backend, summed=summed)
        function.setup_context(ctx, (*tensors, spec), output)

    def backward(ctx, *gradients):
        more = 6 if function is Weight and summed else 5
        found = list(function.backward(ctx, *gradients))
        for place in bias:
            del found[place]
        return *found[:count], *(None,) * more

    torch.library.register_autograd(f"{backend.NAMESPACE}::{op}", backward, setup_context=setup_context)


for _function in (Forward, Input, Weight, Backward):
    for _op, _summed in ((_function.OP, True), (_function.ACTIVATION_OP, False)):
        for _backend in with_op(_op):
            _register(_op, _backend, _function, _summed)
