"""Differentiation of the trilinear form T_m(x; s, C, g): three contractions closed under differentiation.

    T_m = sum_{b,i,r,o} s[b,i] C[i,r,o] g[b,o] B_r^(m)(x[b,i])

    Forward  F_m(x,s,C) = dT/dg      Input  X_m(x,C,g) = dT/ds      Weight  W_m(x,s,g) = dT/dC

T is linear in the row scale s, in C and in g, so the gradient of a contraction with respect to one of them is
again one of the three, and with respect to x it raises m by one: derivatives of any order run the same
kernels, in reverse and in forward mode. Backward is X_{m+1} and W_m of the same (x, g) in one pass over both.
The base activation is one more row of C: below, C stands for the pair (weight, base_weight).

kan_activation is the same without the sum over i in F: g has a feature axis too, and X_m and W_m sum over o
and over b alone. The rules are those below, word for word, since they never look at what is summed:
`spec.summed` picks the ops, and g and F_m are (B, in, heads) in place of (B, out).

Nothing else in the package knows how to differentiate a layer. `spec.backend` is the module that runs the
contractions, `spec.numbers` are the constants of its calls; no rule depends on which basis it is.
"""

from typing import Any

import torch
from torch import Tensor

from .._core.bases import BY_CODE
from .._core.function import Function, func_or_forward_mode, map_rows, map_stack, recording, transforming
from .._core.library import map_op
from .._core.problem import Spec
from ..backends import reference

Some = Tensor | None

_will_execute = torch._C._will_engine_execute_node


def kan_linear(x: Tensor, weight: Tensor, base_weight: Some, bias: Some, grid: Tensor, spec: Spec) -> Tensor:
    """Return F_m(x, 1, C) + bias, differentiable in x, C and bias; the tensors as for the op, x (B, in)."""
    y: Tensor
    if torch.compiler.is_compiling():
        # an op in a graph has no rule of torch.func's, and no tangent: it would be a silent zero
        plain = func_or_forward_mode()
        if spec.summed:
            run = reference.kan_linear if plain else spec.backend.LINEAR_OP
            y = run(x, None, weight, base_weight, bias, grid, *spec.numbers)
        else:
            run = reference.kan_activation if plain else spec.backend.ACTIVATION_OP
            y = run(x, None, weight, base_weight, grid, *spec.numbers)
    elif func_or_forward_mode() or (
        torch.is_grad_enabled()
        and (
            weight.requires_grad
            or x.requires_grad
            or (bias is not None and bias.requires_grad)
            or (base_weight is not None and base_weight.requires_grad)
        )
    ):
        y = Forward.apply(x, None, weight, base_weight, bias, grid, spec)
    else:
        y = Forward.forward(x, None, weight, base_weight, bias, grid, spec)
    return y


def _forward(x, weight, base_weight, s, grid, spec: Spec) -> Tensor:
    call = Forward.apply if recording() else Forward.forward
    return call(x, s, weight, base_weight, None, grid, spec)


def _input(x, weight, base_weight, g, grid, spec: Spec) -> Tensor:
    call = Input.apply if recording() else Input.forward
    return call(x, weight, base_weight, g, grid, spec)


def _weight(x, s, g, grid, spec: Spec, like: Some = None) -> tuple[Tensor, Tensor]:
    """Compute W_m. like: the weights, whose layout in memory their gradient takes where it can: no copy."""
    if recording():
        return Weight.apply(x, s, g, grid, spec)
    if not spec.summed:
        return spec.backend.kan_activation_grad_weight(x, s, g, grid, *spec.numbers)
    like = None if BY_CODE[spec.basis].local else like
    return spec.backend.kan_linear_grad_weight(x, s, g, grid, *spec.numbers, like)


def _backward(x, weight, base_weight, g, grid, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    call = Backward.apply if recording() else Backward.forward
    return call(x, weight, base_weight, g, grid, spec)


def asked(ctx: Any, s: Some, base: int) -> tuple[bool, bool]:
    """Return whether the running backward pass of a Forward uses the gradients of x and of C.

    `ctx.needs_input_grad` says what required a gradient in the forward pass; autograd.grad(inputs=...) often
    asks for less (a PDE residual wants dx, never dC), and half of the work can then be left out.
    """
    if transforming() or torch.compiler.is_compiling():
        return True, True
    edges = ctx.next_functions  # one for each argument that is a tensor
    weight = 1 if s is None else 2
    if not (runs(edges[weight][0]) or (base != 0 and runs(edges[weight + 1][0]))):
        return True, False  # something was asked for, or this backward would not run
    return runs(edges[0][0]), True


def runs(node: Any) -> bool:
    """Return whether the running backward pass computes what this node asks for."""
    try:
        return node is not None and _will_execute(node)
    except RuntimeError:  # raised for exactly the leaves whose gradient autograd.grad returns
        return True


def _sum(*terms: Some) -> Some:
    """Return the sum, where None is zero."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _times(s: Some, t: Tensor) -> Tensor:
    """Return s * t, where a row scale of None is one."""
    return t if s is None else s * t


# The gradients of each contraction. Each line is one entry of the table in docs/mathematics.md.


def _input_gradients(tensors, spec: Spec, t, needs):
    """Return those of X_m(x, C, g) with cotangent t: (dx, dweight, dbase, dg), where `needs` asks."""
    x, weight, base_weight, g, grid = tensors
    need_x, need_weight, need_base, need_g = needs
    dx = dweight = dbase = dg = None
    if need_x:
        dx = t * _input(x, weight, base_weight, g, grid, spec.raised())
    if need_weight or need_base:
        dweight, dbase = _weight(x, t, g, grid, spec)
    if need_g:
        dg = _forward(x, weight, base_weight, t, grid, spec)
    return dx, dweight, dbase if spec.base else None, dg


def _weight_gradients(tensors, spec: Spec, v, v_base, needs):
    """Return those of W_m(x, s, g), cotangents v, v_base, possibly None: (dx, ds, dg) if `needs` asks."""
    x, s, g, grid = tensors
    v, v_base, spec = _weight_pair(v, v_base, spec)
    if v is None:
        return None, None, None
    need_x, need_s, need_g = needs
    dx = ds = dg = None
    if need_x:
        dx = _times(s, _input(x, v, v_base, g, grid, spec.raised()))
    if need_s:
        ds = _input(x, v, v_base, g, grid, spec)
    if need_g:
        dg = _forward(x, v, v_base, s, grid, spec)
    return dx, ds, dg


def _weight_pair(v: Some, v_base: Some, spec: Spec) -> tuple[Some, Some, Spec]:
    """Return (v, v_base, spec): a missing v becomes zeros, a missing v_base leaves the contraction."""
    if not spec.base or v_base is None:
        return v, None, spec.without_base()
    if v is None:
        v = v_base.new_zeros(*v_base.shape[:-1], spec.functions, v_base.shape[-1])
    return v, v_base, spec


# The tangents of each contraction, for forward mode: the derivative of T along every argument that has one.


def _forward_tangent(tensors, spec: Spec, x_t, s_t, weight_t, base_t):
    x, s, weight, base_weight, grid = tensors
    along_x = along_weight = along_s = None
    if x_t is not None:
        along_x = _forward(x, weight, base_weight, _times(s, x_t), grid, spec.raised())
    weight_t, base_t, tangent_spec = _weight_pair(weight_t, base_t, spec)
    if weight_t is not None:
        along_weight = _forward(x, weight_t, base_t, s, grid, tangent_spec)
    if s_t is not None:
        along_s = _forward(x, weight, base_weight, s_t, grid, spec)
    return _sum(along_x, along_weight, along_s)


def _input_tangent(tensors, spec: Spec, x_t, weight_t, base_t, g_t):
    x, weight, base_weight, g, grid = tensors
    along_x = along_weight = along_g = None
    if x_t is not None:
        along_x = x_t * _input(x, weight, base_weight, g, grid, spec.raised())
    weight_t, base_t, tangent_spec = _weight_pair(weight_t, base_t, spec)
    if weight_t is not None:
        along_weight = _input(x, weight_t, base_t, g, grid, tangent_spec)
    if g_t is not None:
        along_g = _input(x, weight, base_weight, g_t, grid, spec)
    return _sum(along_x, along_weight, along_g)


def _weight_tangent(tensors, spec: Spec, x_t, s_t, g_t):
    x, s, g, grid = tensors
    none = (None, None)
    along_x = none if x_t is None else _weight(x, _times(s, x_t), g, grid, spec.raised())
    along_s = none if s_t is None else _weight(x, s_t, g, grid, spec)
    along_g = none if g_t is None else _weight(x, s, g_t, grid, spec)
    return tuple(_sum(*parts) for parts in zip(along_x, along_s, along_g, strict=True))


def _save(ctx: Any, tensors: tuple[Some, ...], spec: Spec) -> None:
    ctx.save_for_backward(*tensors)
    ctx.spec = spec
    ctx.set_materialize_grads(False)
    if func_or_forward_mode():
        ctx.save_for_forward(*tensors)


class Contraction(Function):
    """The part that the four share: under vmap of weights, networks lie side by side in one call."""

    RANKS: tuple[int, ...] = ()  # dimensions of the tensors before the spec, the grid last
    OP = ACTIVATION_OP = ""  # the ops with and without the sum over the features

    @classmethod
    def vmap(cls, info, in_dims, *args):
        if not args[-1].summed:
            return cls._vmap_features(info.batch_size, in_dims, args)
        tensors = list(zip(args[:-1], in_dims, cls.RANKS, strict=False))
        side_by_side = any(
            t is not None and (t.dim() - (dim is not None) > rank or (dim is not None and n not in cls.ROWS))
            for n, (t, dim, rank) in enumerate(tensors)
        )
        if side_by_side and args[-1].backend.STACKS:
            ranks = cls.RANKS
            return map_stack(cls.apply, ranks, len(ranks) - 1, info.batch_size, in_dims, args)
        return map_rows(cls.apply, cls.ROWS, info.batch_size, in_dims, args)

    @classmethod
    def _vmap_features(cls, size, in_dims, args):
        """Map the op, which knows no bias: there is none."""
        call, bias = cls.apply, 4 if cls is Forward else None
        if bias is not None:
            in_dims, args = in_dims[:bias] + in_dims[bias + 1 :], args[:bias] + args[bias + 1 :]

            def call(*args):
                return cls.apply(*args[:bias], None, *args[bias:])

        return map_op(call, cls.ACTIVATION_OP, size, in_dims, args)


class Forward(Contraction):
    """The contraction F_m(x, s, C) + bias: (B, out)."""

    ROWS = (0, 1)  # x, s
    RANKS = (2, 2, 3, 2, 1, 2)
    OP = "kan_linear"
    ACTIVATION_OP = "kan_activation"

    @staticmethod
    def forward(x, s, weight, base_weight, bias, grid, spec):
        if not spec.summed:
            return spec.backend.kan_activation(x, s, weight, base_weight, grid, *spec.numbers)
        return spec.backend.kan_linear(x, s, weight, base_weight, bias, grid, *spec.numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, s, weight, base_weight, _, grid, spec = inputs
        _save(ctx, (x, s, weight, base_weight, grid), spec)

    @staticmethod
    def backward(ctx, g):
        if g is None:
            return (None,) * 7
        x, s, weight, base_weight, grid = ctx.saved_tensors
        spec = ctx.spec
        need_x, need_s, need_weight, need_base, need_bias = ctx.needs_input_grad[:5]
        need_weight = need_weight or need_base
        if need_x and need_weight:
            need_x, need_weight = asked(ctx, s, spec.base)
        dx = ds = dweight = dbase = dbias = None
        if need_x and need_weight and s is None:
            dx, dweight, dbase = _backward(x, weight, base_weight, g, grid, spec)
        else:
            if need_x:
                dx = _times(s, _input(x, weight, base_weight, g, grid, spec.raised()))
            if need_weight:
                dweight, dbase = _weight(x, s, g, grid, spec, weight)
        if need_s:
            ds = _input(x, weight, base_weight, g, grid, spec)
        if need_bias:
            dbias = g.sum(-2)
        return dx, ds, dweight, dbase if spec.base else None, dbias, None, None

    @staticmethod
    def jvp(ctx, x_t, s_t, weight_t, base_t, bias_t, *_):
        y_t = _forward_tangent(ctx.saved_tensors, ctx.spec, x_t, s_t, weight_t, base_t)
        if bias_t is None:
            return y_t
        rows = ctx.saved_tensors[0].shape[-2]
        return _sum(y_t, bias_t.unsqueeze(-2).expand(*bias_t.shape[:-1], rows, -1))


class Input(Contraction):
    """The contraction X_m(x, C, g): (B, in)."""

    ROWS = (0, 3)  # x, g
    RANKS = (2, 3, 2, 2, 2)
    OP = "kan_linear_grad_input"
    ACTIVATION_OP = "kan_activation_grad_input"

    @staticmethod
    def forward(x, weight, base_weight, g, grid, spec):
        if not spec.summed:
            return spec.backend.kan_activation_grad_input(x, weight, base_weight, g, grid, *spec.numbers)
        return spec.backend.kan_linear_grad_input(x, weight, base_weight, g, grid, *spec.numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save(ctx, inputs[:5], inputs[5])

    @staticmethod
    def backward(ctx, t):
        if t is None:
            return (None,) * 6
        return *_input_gradients(ctx.saved_tensors, ctx.spec, t, ctx.needs_input_grad[:4]), None, None

    @staticmethod
    def jvp(ctx, x_t, weight_t, base_t, g_t, *_):
        return _input_tangent(ctx.saved_tensors, ctx.spec, x_t, weight_t, base_t, g_t)


class Weight(Contraction):
    """The contraction W_m(x, s, g): (in, R, out) and (in, out), the second empty without a base."""

    RANKS = (2, 2, 2, 2)
    OP = "kan_linear_grad_weight"
    ACTIVATION_OP = "kan_activation_grad_weight"

    @staticmethod
    def forward(x, s, g, grid, spec):
        if not spec.summed:
            return spec.backend.kan_activation_grad_weight(x, s, g, grid, *spec.numbers)
        return spec.backend.kan_linear_grad_weight(x, s, g, grid, *spec.numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save(ctx, inputs[:4], inputs[4])

    @staticmethod
    def backward(ctx, v, v_base):
        needs = ctx.needs_input_grad[:3]
        return *_weight_gradients(ctx.saved_tensors, ctx.spec, v, v_base, needs), None, None

    @staticmethod
    def jvp(ctx, x_t, s_t, g_t, *_):
        return _weight_tangent(ctx.saved_tensors, ctx.spec, x_t, s_t, g_t)


class Backward(Contraction):
    """The contractions X_{m+1}(x, C, g) and W_m(x, 1, g) in one pass: (B, in), (in, R, out), (in, out)."""

    RANKS = (2, 3, 2, 2, 2)
    OP = "kan_linear_backward"
    ACTIVATION_OP = "kan_activation_backward"

    @staticmethod
    def forward(x, weight, base_weight, g, grid, spec):
        if not spec.summed:
            return spec.backend.kan_activation_backward(x, weight, base_weight, g, grid, *spec.numbers)
        return spec.backend.kan_linear_backward(x, weight, base_weight, g, grid, *spec.numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save(ctx, inputs[:5], inputs[5])

    @staticmethod
    def backward(ctx, t, v, v_base):
        x, _, _, g, grid = ctx.saved_tensors
        needs = need_x, _, _, need_g = ctx.needs_input_grad[:4]
        dx = dweight = dbase = dg = None
        if t is not None:
            dx, dweight, dbase, dg = _input_gradients(ctx.saved_tensors, ctx.spec.raised(), t, needs)
        dx_v, _, dg_v = _weight_gradients((x, None, g, grid), ctx.spec, v, v_base, (need_x, False, need_g))
        return _sum(dx, dx_v), dweight, dbase, _sum(dg, dg_v), None, None

    @staticmethod
    def jvp(ctx, x_t, weight_t, base_t, g_t, *_):
        x, _, _, g, grid = ctx.saved_tensors
        t_t = _input_tangent(ctx.saved_tensors, ctx.spec.raised(), x_t, weight_t, base_t, g_t)
        return t_t, *_weight_tangent((x, None, g, grid), ctx.spec, x_t, None, g_t)
