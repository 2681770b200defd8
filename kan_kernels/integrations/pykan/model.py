"""pykan's MultKAN on the kernels, its statistics computed when they are read."""

import functools
from typing import Any

import torch
from torch import Tensor

from ..._core.function import transforming
from .. import accelerate
from .._shared.accelerated import Accelerated, traced
from .code import is_its_own, why_not_model
from .layer import AcceleratedLayer, has_own_call
from .penalty import penalty
from .statistics import STATISTICS, Layer, Pass
from .symbolic import NotFinite, Symbolic, evaluate

_PASS = "_kan_kernels_pass"


_METRICS = {
    "edge_forward_spline_n": "acts_scale_spline",
    "edge_forward_sum": "acts_scale",
    "edge_forward_spline_u": "edge_actscale",
    "edge_backward": "edge_scores",
    "node_backward": "node_attribute_scores",
}
"""What pykan's reg_metric regularises."""


class AcceleratedModel(Accelerated):
    """The methods that replace those of a MultKAN."""

    # of the MultKAN this is mixed into
    act_fun: Any
    symbolic_fun: Any
    width: list[list[int]]
    mult_arity: Any
    mult_homo: bool
    _kan_kernels_only_x = False
    _kan_kernels_plain: frozenset[type]
    """Classes of symbolic layers whose forward is pykan's."""
    _kan_kernels_own_reg: bool
    """Whether `reg` is pykan's."""

    def forward(self, x: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0) -> Tensor:
        """Map (B, inputs) to (B, outputs), as pykan does; statistics of the pass are computed when read."""
        if self._kan_kernels_left is not None or torch.compiler.is_compiling() or transforming() or traced(x):
            return super().forward(x, singularity_avoiding, y_th)
        state = self.__dict__
        x = x[:, self.input_id.long()]
        assert x.shape[1] == self.width_in[0]
        state["cache_data"] = x
        acts, trace = [x], Pass()
        premult: list[Tensor] = []
        state["acts"], state["acts_premult"] = acts, premult
        save_act = self.save_act
        self._forget()
        if save_act:
            state[_PASS] = trace
        else:
            state.update({name: [] for name in STATISTICS})
        depth = self.depth
        for l in range(depth):  # noqa: E741  # pykan's name
            y, weights, dense = self._numerical(l, x)
            symbolic: Symbolic | Tensor | None = None
            if self.symbolic_enabled:
                y, symbolic = self._symbolic(l, x, y, singularity_avoiding, y_th)
            if save_act:
                trace.layers.append(Layer(x, y, weights, dense, symbolic))
            x = _affine(y, self.subnode_scale[l], self.subnode_bias[l])
            if save_act:
                premult.append(x.detach())
            if self.width[l + 1][1] > 0:
                x = self._multiply(l + 1, x)
            # a tensor of its own goes to the caller, who may write into it
            x = _affine(x, self.node_scale[l], self.node_bias[l], always=l == depth - 1)
            acts.append(x.detach())
        trace.done = True
        return x

    def _numerical(self, l: int, x: Tensor) -> tuple[Any, Any, Any]:  # noqa: E741
        """Return y, and either the weights it was computed from or pykan's dense tensors."""
        layer = self.act_fun[l]
        own_forward = type(layer).forward is not AcceleratedLayer.forward  # of a class set later
        if isinstance(layer, AcceleratedLayer) and not own_forward and not has_own_call(layer):
            weights = layer._kan_kernels_weights(x)
            if weights is not None and x.dtype == weights.spline.dtype:
                return weights.forward(x), weights, None
        y, *dense = layer(x)
        return y, None, tuple(dense)

    def _symbolic(
        self,
        l: int,  # noqa: E741
        x: Tensor,
        y: Tensor,
        singularity_avoiding: bool,
        y_th: float,
    ) -> tuple[Tensor, Symbolic | Tensor | None]:
        """Return y with what the symbolic edges add, and that."""
        layer = self.symbolic_fun[l]
        if (
            type(layer) in self._kan_kernels_plain
            and not has_own_call(layer)
            and x.dtype == layer.affine.dtype
        ):
            try:
                symbolic = evaluate(layer, x, singularity_avoiding, y_th)
            except NotFinite:
                pass
            else:
                if symbolic is not None:
                    return symbolic.add_to(y), symbolic
                if layer.affine.requires_grad:  # its gradient is zeros, and not None
                    y = torch.add(y, layer.affine.sum(), alpha=0)
                return y, None
        added, postacts = layer(x, singularity_avoiding=singularity_avoiding, y_th=y_th)
        return y + added, postacts

    def _multiply(self, l: int, x: Tensor) -> Tensor:  # noqa: E741
        """Map subnodes (B, width_out[l]) to nodes: sums stay, multiplication nodes multiply neighbours."""
        sums, products = self.width[l]
        if self.mult_homo:
            factors = [x[:, sums + n :: self.mult_arity] for n in range(self.mult_arity)]
            product = factors[0]
            for factor in factors[1:]:
                product = product * factor
            return torch.cat([x[:, :sums], product], dim=1)
        columns, start = [x[:, :sums]], sums
        for arity in self.mult_arity[l][:products]:
            product = x[:, start : start + 1]
            for n in range(1, arity):
                product = product * x[:, start + n : start + n + 1]
            columns.append(product)
            start += arity
        return torch.cat(columns, dim=1)

    def reg(
        self, reg_metric: str, lamb_l1: float, lamb_entropy: float, lamb_coef: float, lamb_coefdiff: float
    ) -> Any:
        """Return pykan's regularisation, the same number in fewer operations."""
        attribute = _METRICS.get(reg_metric)
        lambs = (lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff)
        numbers = all(isinstance(lamb, (int, float)) for lamb in lambs)
        if attribute is None or not numbers or not self._kan_kernels_own_reg:
            return super().reg(reg_metric, *lambs)  # type: ignore[misc]
        sizes = getattr(self, attribute)
        if not any(size.requires_grad for size in sizes):  # then pykan's number has the gradient of 0 * coef
            return super().reg(reg_metric, *lambs)  # type: ignore[misc]
        return penalty(sizes, self.act_fun, *lambs)

    def __getattr__(self, name: str) -> Any:
        """Return a statistic of the last forward pass, an attribute from then on."""
        if name in STATISTICS:
            trace = self.__dict__.get(_PASS)
            if trace is not None:
                value = trace.compute(name)
                if trace.done:  # a hook that reads it during the pass sees the layers so far
                    self.__dict__[name] = value
                return value
        return super().__getattr__(name)

    def _forget(self) -> None:
        """Drop the last pass and what was computed from it."""
        state = self.__dict__
        state.pop(_PASS, None)
        for name in STATISTICS:
            state.pop(name, None)

    def _kan_kernels_detach(self) -> None:
        """Compute the statistics that were not read yet: pykan's own methods read plain attributes."""
        if _PASS in self.__dict__:
            for name in STATISTICS:
                getattr(self, name)

    def _kan_kernels_judge(self) -> tuple[str | None, frozenset[int] | None]:
        # of a model that is taken all of them are pykan's: see why_not_model
        self.__dict__["_kan_kernels_plain"] = frozenset(type(layer) for layer in self.symbolic_fun)
        self.__dict__["_kan_kernels_own_reg"] = is_its_own(self, "MultKAN", "reg")
        return why_not_model(self._kan_kernels_original, self), None

    def _kan_kernels_fallback(self) -> str | None:
        if self._kan_kernels_left is not None:
            return self._kan_kernels_left
        own = [
            f"act_fun {n} ({'it was not taken' if not isinstance(layer, AcceleratedLayer) else why})"
            for n, layer in enumerate(self.act_fun)
            if not isinstance(layer, AcceleratedLayer) or (why := layer._kan_kernels_fallback()) is not None
        ]
        return ", ".join(own) or None

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, args, *rest = super().__reduce_ex__(protocol)
        state = rest[0] if rest else None
        if isinstance(state, dict):
            trace = self.__dict__.get(_PASS)
            if trace is not None:
                state[_PASS] = trace
            for name in STATISTICS.keys() & state.keys():
                state[name] = [t.detach() for t in state[name]]
        return function, args, *rest

    # Methods of pykan that make models or layers: what they make is accelerated too.

    def refine(self, *args: Any, **kwargs: Any) -> Any:
        return _accelerated(super().refine(*args, **kwargs))  # type: ignore[misc]

    def copy(self, *args: Any, **kwargs: Any) -> Any:
        return _accelerated(super().copy(*args, **kwargs))  # type: ignore[misc]

    def rewind(self, *args: Any, **kwargs: Any) -> Any:
        return _accelerated(super().rewind(*args, **kwargs))  # type: ignore[misc]

    def checkout(self, *args: Any, **kwargs: Any) -> Any:
        return _accelerated(super().checkout(*args, **kwargs))  # type: ignore[misc]

    def prune_node(self, *args: Any, **kwargs: Any) -> Any:  # prune calls it
        return _accelerated(super().prune_node(*args, **kwargs))  # type: ignore[misc]

    def prune_input(self, *args: Any, **kwargs: Any) -> Any:
        return _accelerated(super().prune_input(*args, **kwargs))  # type: ignore[misc]

    @classmethod
    def loadckpt(cls, *args: Any, **kwargs: Any) -> Any:
        return _accelerated(cls._kan_kernels_original.loadckpt(*args, **kwargs))  # type: ignore[attr-defined]

    def expand_depth(self, *args: Any, **kwargs: Any) -> None:
        super().expand_depth(*args, **kwargs)  # type: ignore[misc]
        accelerate(self)

    def expand_width(self, *args: Any, **kwargs: Any) -> None:
        super().expand_width(*args, **kwargs)  # type: ignore[misc]
        accelerate(self)


def _accelerated(model: Any) -> Any:
    accelerate(model)
    return model


def _affine(x: Tensor, scale: Tensor, bias: Tensor, always: bool = False) -> Tensor:
    """Return scale * x + bias for every column."""
    if (
        not always
        and x.is_cpu
        and not (scale.requires_grad or bias.requires_grad)
        and _is_identity(scale, bias)
    ):
        return x
    return torch.addcmul(bias, scale, x)


@functools.lru_cache(maxsize=256)
def _identity(size: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.ones(size, dtype=dtype, device=device), torch.zeros(size, dtype=dtype, device=device)


def _is_identity(scale: Tensor, bias: Tensor) -> bool:
    one, zero = _identity(scale.shape[0], scale.dtype, scale.device)
    return torch.equal(scale, one) and torch.equal(bias, zero)
