"""Differentiation of the trilinear form T_m(x; s, C, g): three contractions closed under differentiation.

    T_m = sum_{b,i,r,o} s[b,i] C[i,r,o] g[b,o] B_r^(m)(x[b,i])

    Forward  F_m(x,s,C) = dT/dg      Input  X_m(x,C,g) = dT/ds      Weight  W_m(x,s,g) = dT/dC

T is linear in s, C and g, so the gradient of a contraction with respect to one of them is again one of the
three, and with respect to x it raises m by one: derivatives of any order run the same kernels, in reverse
and in forward mode. Backward is X_{m+1} and W_m of the same (x, g) in one pass over both.
The base activation is one more row of C: below, C stands for the pair (spline_weight, base_weight).

Which basis it is, by its code in contract.py, is a constant like its order: no rule depends on it.

Nothing else in the package knows how to differentiate. `ops` is a backend module: the four contractions.
"""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .._core.bases import basis_rows
from .._core.library import map_rows
from ..backends import BACKENDS

_transforming = torch._C._are_functorch_transforms_active
_will_execute = torch._C._will_engine_execute_node


def kan_linear(x, weight, base_weight, bias, grid, order, base, m, basis, ops) -> Tensor:
    """F_m(x, 1, C) + bias, differentiable in x, C and bias. x: (B, in); the rest as for the op `forward`."""
    if torch.compiler.is_compiling():
        return ops.forward_op(x, None, weight, base_weight, bias, grid, order, base, m, basis)
    if (
        _transforming()
        or forward_ad._current_level >= 0
        or (
            torch.is_grad_enabled()
            and (
                weight.requires_grad
                or x.requires_grad
                or (bias is not None and bias.requires_grad)
                or (base_weight is not None and base_weight.requires_grad)
            )
        )
    ):
        return Forward.apply(x, None, weight, base_weight, bias, grid, order, base, m, basis, ops)
    return ops.forward(x, None, weight, base_weight, bias, grid, order, base, m, basis)


def _recording() -> bool:
    """Whether a backward pass is itself being differentiated (create_graph, torch.func, forward mode)."""
    return torch.is_grad_enabled() or _transforming() or forward_ad._current_level >= 0


def _forward(x, weight, base_weight, s, grid, order, base, m, basis, ops) -> Tensor:
    if _recording():
        return Forward.apply(x, s, weight, base_weight, None, grid, order, base, m, basis, ops)
    return ops.forward(x, s, weight, base_weight, None, grid, order, base, m, basis)


def _input(x, weight, base_weight, g, grid, order, base, m, basis, ops) -> Tensor:
    if _recording():
        return Input.apply(x, weight, base_weight, g, grid, order, base, m, basis, ops)
    return ops.input(x, weight, base_weight, g, grid, order, base, m, basis)


def _weight(x, s, g, grid, order, base, m, basis, ops, like=None) -> tuple[Tensor, Tensor]:
    """like: the weights, whose layout in memory their gradient takes where it can, and need not be copied."""
    if _recording():
        return Weight.apply(x, s, g, grid, order, base, m, basis, ops)
    return ops.weight(x, s, g, grid, order, base, m, basis, like if basis else None)


def _backward(x, weight, base_weight, g, grid, order, base, m, basis, ops) -> tuple[Tensor, Tensor, Tensor]:
    if _recording():
        return Backward.apply(x, weight, base_weight, g, grid, order, base, m, basis, ops)
    return ops.backward(x, weight, base_weight, g, grid, order, base, m, basis)


def asked(ctx, s, base) -> tuple[bool, bool]:
    """Whether the running backward pass of a Forward uses the gradients of x and of C.

    `ctx.needs_input_grad` says what required a gradient in the forward pass; autograd.grad(inputs=...) often
    asks for less (a PDE residual wants dx, never dC), and half of the work can then be left out.
    """
    if _transforming() or torch.compiler.is_compiling():
        return True, True
    edges = ctx.next_functions  # one for each argument that is a tensor
    weight = 1 if s is None else 2
    if not (_runs(edges[weight][0]) or (base != 0 and _runs(edges[weight + 1][0]))):
        return True, False  # something was asked for, or this backward would not run
    return _runs(edges[0][0]), True


def _runs(node) -> bool:
    try:
        return node is not None and _will_execute(node)
    except RuntimeError:  # raised for exactly the leaves whose gradient autograd.grad returns
        return True


def _sum(*terms: Tensor | None) -> Tensor | None:
    """The sum, where None is zero."""
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _times(s: Tensor | None, t: Tensor) -> Tensor:
    """s * t, where a side weight of None is one."""
    return t if s is None else s * t


# The gradients of each contraction. Each line is one entry of the table in docs/design.md.


def _input_gradients(tensors, constants, t, needs):
    """Of X_m(x, C, g) with cotangent t: (dx, dweight, dbase, dg), where `needs` asks for them."""
    x, weight, base_weight, g, grid = tensors
    order, base, m, basis, ops = constants
    need_x, need_weight, need_base, need_g = needs
    dx = dweight = dbase = dg = None
    if need_x:
        dx = t * _input(x, weight, base_weight, g, grid, order, base, m + 1, basis, ops)
    if need_weight or need_base:
        dweight, dbase = _weight(x, t, g, grid, order, base, m, basis, ops)
    if need_g:
        dg = _forward(x, weight, base_weight, t, grid, order, base, m, basis, ops)
    return dx, dweight, dbase if base else None, dg


def _weight_gradients(tensors, constants, v, v_base, needs):
    """Of W_m(x, s, g) with cotangents v and v_base, each possibly None: (dx, ds, dg), where `needs` asks."""
    x, s, g, grid = tensors
    order, base, m, basis, ops = constants
    v, v_base, base = _weight_pair(v, v_base, grid, order, base, basis)
    if v is None:
        return None, None, None
    need_x, need_s, need_g = needs
    dx = ds = dg = None
    if need_x:
        dx = _times(s, _input(x, v, v_base, g, grid, order, base, m + 1, basis, ops))
    if need_s:
        ds = _input(x, v, v_base, g, grid, order, base, m, basis, ops)
    if need_g:
        dg = _forward(x, v, v_base, s, grid, order, base, m, basis, ops)
    return dx, ds, dg


def _weight_pair(v, v_base, grid, order, base, basis):
    """(v, v_base, base), where a missing v becomes zeros and a missing v_base leaves the contraction."""
    if not base or v_base is None:
        return v, None, 0
    if v is None:
        v = v_base.new_zeros(v_base.shape[0], basis_rows(basis, grid.shape[1], order), v_base.shape[1])
    return v, v_base, base


# The tangents of each contraction, for forward mode: the derivative of T along every argument that has one.


def _forward_tangent(tensors, constants, x_t, s_t, weight_t, base_t):
    x, s, weight, base_weight, grid = tensors
    order, base, m, basis, ops = constants
    along_x = along_weight = along_s = None
    if x_t is not None:
        along_x = _forward(x, weight, base_weight, _times(s, x_t), grid, order, base, m + 1, basis, ops)
    weight_t, base_t, tangent_base = _weight_pair(weight_t, base_t, grid, order, base, basis)
    if weight_t is not None:
        along_weight = _forward(x, weight_t, base_t, s, grid, order, tangent_base, m, basis, ops)
    if s_t is not None:
        along_s = _forward(x, weight, base_weight, s_t, grid, order, base, m, basis, ops)
    return _sum(along_x, along_weight, along_s)


def _input_tangent(tensors, constants, x_t, weight_t, base_t, g_t):
    x, weight, base_weight, g, grid = tensors
    order, base, m, basis, ops = constants
    along_x = along_weight = along_g = None
    if x_t is not None:
        along_x = x_t * _input(x, weight, base_weight, g, grid, order, base, m + 1, basis, ops)
    weight_t, base_t, tangent_base = _weight_pair(weight_t, base_t, grid, order, base, basis)
    if weight_t is not None:
        along_weight = _input(x, weight_t, base_t, g, grid, order, tangent_base, m, basis, ops)
    if g_t is not None:
        along_g = _input(x, weight, base_weight, g_t, grid, order, base, m, basis, ops)
    return _sum(along_x, along_weight, along_g)


def _weight_tangent(tensors, constants, x_t, s_t, g_t):
    x, s, g, grid = tensors
    order, base, m, basis, ops = constants
    none = (None, None)
    along_x = none if x_t is None else _weight(x, _times(s, x_t), g, grid, order, base, m + 1, basis, ops)
    along_s = none if s_t is None else _weight(x, s_t, g, grid, order, base, m, basis, ops)
    along_g = none if g_t is None else _weight(x, s, g_t, grid, order, base, m, basis, ops)
    return tuple(_sum(*parts) for parts in zip(along_x, along_s, along_g, strict=True))


class RowFunction(Function):
    """What Functions of rows share: a cheap `apply`, and the rule of vmap."""

    ROWS: tuple[int, ...] = ()  # the arguments that have rows, if the output has rows too

    @classmethod
    def apply(cls, *args):
        """Function.apply without its inspect.signature().bind, which costs more than a small kernel."""
        if _transforming():
            return super().apply(*args)  # type: ignore[misc]
        return super(Function, cls).apply(*args)  # type: ignore[misc]

    @classmethod
    def vmap(cls, info, in_dims, *args):
        return map_rows(cls.apply, cls.ROWS, info.batch_size, in_dims, args)


def _save(ctx, tensors, constants) -> None:
    ctx.save_for_backward(*tensors)
    ctx.constants = constants
    ctx.set_materialize_grads(False)
    if _transforming() or forward_ad._current_level >= 0:
        ctx.save_for_forward(*tensors)


class Forward(RowFunction):
    """F_m(x, s, C) + bias: (B, out)."""

    ROWS = (0, 1)  # x, s

    @staticmethod
    def forward(x, s, weight, base_weight, bias, grid, order, base, m, basis, ops):
        return ops.forward(x, s, weight, base_weight, bias, grid, order, base, m, basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, s, weight, base_weight, _, grid, order, base, m, basis, ops = inputs
        _save(ctx, (x, s, weight, base_weight, grid), (order, base, m, basis, ops))

    @staticmethod
    def backward(ctx, g):
        if g is None:
            return (None,) * 11
        x, s, weight, base_weight, grid = ctx.saved_tensors
        order, base, m, basis, ops = ctx.constants
        need_x, need_s, need_weight, need_base, need_bias = ctx.needs_input_grad[:5]
        need_weight = need_weight or need_base
        if need_x and need_weight:
            need_x, need_weight = asked(ctx, s, base)
        dx = ds = dweight = dbase = dbias = None
        if need_x and need_weight and s is None:
            dx, dweight, dbase = _backward(x, weight, base_weight, g, grid, order, base, m, basis, ops)
        else:
            if need_x:
                dx = _times(s, _input(x, weight, base_weight, g, grid, order, base, m + 1, basis, ops))
            if need_weight:
                dweight, dbase = _weight(x, s, g, grid, order, base, m, basis, ops, weight)
        if need_s:
            ds = _input(x, weight, base_weight, g, grid, order, base, m, basis, ops)
        if need_bias:
            dbias = g.sum(0)
        return dx, ds, dweight, dbase if base else None, dbias, *(None,) * 6

    @staticmethod
    def jvp(ctx, x_t, s_t, weight_t, base_t, bias_t, *_):
        y_t = _forward_tangent(ctx.saved_tensors, ctx.constants, x_t, s_t, weight_t, base_t)
        rows = ctx.saved_tensors[0].shape[0]
        return _sum(y_t, None if bias_t is None else bias_t.expand(rows, -1))


class Input(RowFunction):
    """X_m(x, C, g): (B, in)."""

    ROWS = (0, 3)  # x, g

    @staticmethod
    def forward(x, weight, base_weight, g, grid, order, base, m, basis, ops):
        return ops.input(x, weight, base_weight, g, grid, order, base, m, basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save(ctx, inputs[:5], inputs[5:])

    @staticmethod
    def backward(ctx, t):
        if t is None:
            return (None,) * 10
        gradients = _input_gradients(ctx.saved_tensors, ctx.constants, t, ctx.needs_input_grad[:4])
        return *gradients, *(None,) * 6

    @staticmethod
    def jvp(ctx, x_t, weight_t, base_t, g_t, *_):
        return _input_tangent(ctx.saved_tensors, ctx.constants, x_t, weight_t, base_t, g_t)


class Weight(RowFunction):
    """W_m(x, s, g): (in, G+k, out) and (in, out), the second empty without a base."""

    @staticmethod
    def forward(x, s, g, grid, order, base, m, basis, ops):
        return ops.weight(x, s, g, grid, order, base, m, basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save(ctx, inputs[:4], inputs[4:])

    @staticmethod
    def backward(ctx, v, v_base):
        gradients = _weight_gradients(ctx.saved_tensors, ctx.constants, v, v_base, ctx.needs_input_grad[:3])
        return *gradients, *(None,) * 6

    @staticmethod
    def jvp(ctx, x_t, s_t, g_t, *_):
        return _weight_tangent(ctx.saved_tensors, ctx.constants, x_t, s_t, g_t)


class Backward(RowFunction):
    """X_{m+1}(x, C, g) and W_m(x, 1, g) in one pass: (B, in), (in, G+k, out), (in, out)."""

    @staticmethod
    def forward(x, weight, base_weight, g, grid, order, base, m, basis, ops):
        return ops.backward(x, weight, base_weight, g, grid, order, base, m, basis)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _save(ctx, inputs[:5], inputs[5:])

    @staticmethod
    def backward(ctx, t, v, v_base):
        x, _, _, g, grid = ctx.saved_tensors
        order, base, m, basis, ops = ctx.constants
        needs = need_x, _, _, need_g = ctx.needs_input_grad[:4]
        dx = dweight = dbase = dg = None
        if t is not None:
            raised = order, base, m + 1, basis, ops
            dx, dweight, dbase, dg = _input_gradients(ctx.saved_tensors, raised, t, needs)
        dx_v, _, dg_v = _weight_gradients(
            (x, None, g, grid), ctx.constants, v, v_base, (need_x, False, need_g)
        )
        return _sum(dx, dx_v), dweight, dbase, _sum(dg, dg_v), *(None,) * 6

    @staticmethod
    def jvp(ctx, x_t, weight_t, base_t, g_t, *_):
        x, _, _, g, grid = ctx.saved_tensors
        order, base, m, basis, ops = ctx.constants
        t_t = _input_tangent(ctx.saved_tensors, (order, base, m + 1, basis, ops), x_t, weight_t, base_t, g_t)
        return t_t, *_weight_tangent((x, None, g, grid), ctx.constants, x_t, None, g_t)


def _register(namespace: str, ops) -> None:
    """Give the four ops of a backend the same gradients as the Functions.

    torch.compile and torch.export then see one op, differentiable as it stands, and no Function to trace.
    """
    for function in (Forward, Input, Weight, Backward):

        def setup_context(ctx, inputs, output, function=function):
            arguments = inputs[:-1] if function is Weight else inputs  # `like` changes no value
            function.setup_context(ctx, (*arguments, ops), output)

        def backward(ctx, *gradients, function=function):
            gradients = function.backward(ctx, *gradients)
            return gradients if function is Weight else gradients[:-1]

        name = f"{namespace}::{function.__name__.lower()}"
        torch.library.register_autograd(name, backward, setup_context=setup_context)


for _backend in BACKENDS.values():
    if _backend.NAMESPACE is not None:
        _register(_backend.NAMESPACE, _backend)
