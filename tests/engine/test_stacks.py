"""Networks side by side: torch.vmap over weights is one call of each op, with the bits of a loop."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vmap

from basis_cases import LAYOUTS, NAMES, laid_out
from basis_cases import case as full_support_case
from cases import OPS, Case, build
from harness import DEVICE, bits, run_op
from kan_kernels import KAN, KANLinear
from kan_kernels import functional as F
from kan_kernels.backends import native

pytestmark = pytest.mark.skipif(native.NAMESPACE is None, reason="the library is not built")
F64 = torch.float64
COUNT = 5
CASES = [
    Case(9, 3, 4),
    Case(70, 5, 33, 20, 3, 1, "adaptive", "nan", side=True),
    Case(4, 2, 3, dtype=torch.bfloat16, x_dtype=torch.float32, base=None),
    Case(300, 2, 1, dtype=F64, base="identity", layout="sliced"),
    Case(0, 3, 4),
    *[full_support_case(basis, 6, 20, 4, 7) for basis in NAMES],
]
# for one network, the dimensions of an op's tensors, the grid last
RANKS = {
    "forward": (2, 2, 3, 2, 1, 2),
    "input": (2, 3, 2, 2, 2),
    "weight": (2, 2, 2, 2),
    "backward": (2, 3, 2, 2, 2),
}


def stacked(cases: list[tuple[Any, ...]], ranks: tuple[int, ...], shared: tuple[int, ...]) -> list[Any]:
    """The arguments of several calls as those of one; those at `shared` are the first call's."""
    first = cases[0]
    return [
        first[n] if n >= len(ranks) or first[n] is None or n in shared else torch.stack([c[n] for c in cases])
        for n in range(len(first))
    ]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_ops(case: Case, op: str) -> None:
    """Each op, with x and the grid of each network or shared."""
    name, ranks = OPS[op], RANKS[op]
    call = getattr(torch.ops.kan_kernels, name)
    inputs = build(case, DEVICE)
    single = [
        tuple(
            a * (1 + n / 8) if isinstance(a, Tensor) and place < len(ranks) - 1 else a
            for place, a in enumerate(inputs.args(op))
        )
        for n in range(COUNT)
    ]
    for shared in ((), (len(ranks) - 1,)):
        got = call(*stacked(single, ranks, shared))
        for n, one in enumerate(single):
            want = call(*one)
            pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
            for mine, true in pairs:
                assert mine.shape == (COUNT, *true.shape) and mine.dtype == true.dtype
                assert torch.equal(bits(mine[n].contiguous()), bits(true.contiguous()))


@pytest.mark.skipif(DEVICE != "cpu", reason="the CUDA kernels take weights as they lie in another op")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shared_weights_as_they_lie(layout: str) -> None:
    """Weights of all networks that keep the functions of an edge together: each has a gradient of its own."""
    torch.manual_seed(0)
    inputs = build(full_support_case("chebyshev", 6, 20, 4, 7), DEVICE)
    weight = laid_out(inputs.spline_weight, layout)
    x, _, base_weight, g, *numbers = inputs.args("backward")
    args = (x.expand(COUNT, -1, -1), weight, base_weight, torch.rand(COUNT, *g.shape), *numbers)
    found = torch.ops.kan_kernels.kan_linear_backward(*args)
    for n in range(COUNT):
        want = torch.ops.kan_kernels.kan_linear_backward(x, weight, base_weight, args[3][n], *numbers)
        for mine, true in zip(found, want, strict=True):
            assert torch.equal(mine[n], true.contiguous())
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.kan_kernels.kan_linear_backward.default, args, test_utils=checks)


def test_stack_errors() -> None:
    """Other numbers of networks, dimensions and dtypes are named."""
    call = torch.ops.kan_kernels.kan_linear
    args = build(Case(9, 3, 4), DEVICE).args("forward")
    many = [a.expand(3, *a.shape) if isinstance(a, Tensor) else a for a in args]
    for place, tensor, message in (
        (0, many[0][:2], "x must be stacked like the weights, 3 networks"),
        (2, many[2][:0], "got a stack of no networks"),
        (3, many[3].expand(1, *many[3].shape), "base_weight must be stacked"),
        (5, many[5][:2], "grid must be stacked"),
        (4, many[4].double(), "bias must have spline_weight's dtype"),
    ):
        wrong = [*many[:place], tensor, *many[place + 1 :]]
        with pytest.raises(RuntimeError, match=message):
            call(*wrong)
    if DEVICE == "cpu":
        grid = many[5].clone()
        grid[1, 2, 4] = -9
        with pytest.raises(RuntimeError, match="knot 4 of feature 2 is -9"):
            call(*many[:5], grid, *many[6:])


@pytest.mark.parametrize("threads", (1, 3))
def test_threads(threads: int) -> None:
    """A network is a task: the bits do not depend on the number of threads."""
    args = build(Case(400, 6, 20), DEVICE).args("backward")
    many = [a.expand(7, *a.shape) if isinstance(a, Tensor) else a for a in args]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = torch.ops.kan_kernels.kan_linear_backward(*many)
    finally:
        torch.set_num_threads(before)
    for mine, true in zip(got, run_op("native", "backward", build(Case(400, 6, 20), DEVICE)), strict=True):
        assert all(torch.equal(bits(one.contiguous()), bits(true)) for one in mine)


@pytest.fixture
def ensemble() -> tuple[KAN, list[KAN], tuple[dict[str, Tensor], dict[str, Tensor]], Tensor]:
    nets = [KAN([2, 4, 3], dtype=F64, bias=True, device=DEVICE) for _ in range(COUNT)]
    with torch.no_grad():
        for n, net in enumerate(nets):
            net.layers[0].grid.mul_(1 + 0.1 * n)
            for p in net.parameters():
                p.normal_()
    return nets[0], nets, stack_module_state(nets), torch.rand(6, 2, dtype=F64, device=DEVICE) * 2 - 1


def count_ops(call: Any) -> dict[str, int]:
    """How often each op of the library is called."""
    with torch.profiler.profile() as profile:
        call()
    return {e.key: e.count for e in profile.key_averages() if e.key.startswith("kan_kernels::kan_linear")}


def test_one_call_for_all(ensemble: Any) -> None:
    """A training step of an ensemble calls each layer's op once, forward and backward."""
    net, _, (parameters, buffers), x = ensemble

    def loss(p: Any, b: Any) -> Tensor:
        return functional_call(net, (p, b), (x,)).square().mean()

    counts = count_ops(lambda: vmap(grad(loss))(parameters, buffers))
    assert counts == {"kan_kernels::kan_linear": 2, "kan_kernels::kan_linear_grad_weight": 1,
                      "kan_kernels::kan_linear_backward": 1}  # fmt: skip


def test_ensembles(ensemble: Any) -> None:
    """Outputs, gradients, Hessians, tangents, with x of each network or one for all, are those of a loop."""
    net, _, (parameters, buffers), x = ensemble
    xs = torch.stack([x + 0.01 * n for n in range(COUNT)])

    def f(p: Any, b: Any, x: Tensor) -> Tensor:
        return functional_call(net, (p, b), (x,)).pow(2).sum()

    for dims, given in ((None, x), (0, xs)):
        each = (0, 0, dims)
        for what in (f, grad(f), grad(f, 2), hessian(f, 2), jacrev(grad(f, 2), 2)):
            got = vmap(what, each)(parameters, buffers, given)
            for n in range(COUNT):
                one = [{k: v[n] for k, v in part.items()} for part in (parameters, buffers)]
                want = what(*one, given if dims is None else given[n])
                for key, value in want.items() if isinstance(want, dict) else [(None, want)]:
                    mine = got if key is None else got[key]
                    torch.testing.assert_close(mine[n], value, rtol=1e-11, atol=1e-11)

    def tangent(p: Any, b: Any) -> Tensor:
        return jvp(lambda p, x: f(p, b, x), (p, x), (p, x))[1]

    got = vmap(tangent)(parameters, buffers)
    for n in range(COUNT):
        one = [{k: v[n] for k, v in part.items()} for part in (parameters, buffers)]
        torch.testing.assert_close(got[n], tangent(*one))


def test_autograd_through_vmap(ensemble: Any) -> None:
    """loss.backward() of a vmapped ensemble, and its second derivative, with a shared x that needs one."""
    net, nets, (parameters, buffers), x = ensemble
    x.requires_grad_()
    y = vmap(lambda p, b: functional_call(net, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(y, torch.stack([n(x) for n in nets]))
    (dx,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    found = torch.autograd.grad(dx.square().sum(), list(parameters.values()))
    (dx,) = torch.autograd.grad(sum(n(x).pow(3).sum() for n in nets), x, create_graph=True)
    names = [name for name, _ in net.named_parameters()]
    wanted = torch.autograd.grad(dx.square().sum(), [p for n in nets for p in n.parameters()])
    for place, name in enumerate(parameters):
        at = names.index(name)
        want = torch.stack([wanted[n * len(names) + at] for n in range(COUNT)])
        torch.testing.assert_close(found[place], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("outer,inner", list(product((0, 1), (0, 1))))
def test_nested(outer: int, inner: int) -> None:
    """vmap in vmap, over weights, rows and both, the mapped dimension first or second."""
    layer = KANLinear(3, 4, dtype=F64, bias=True, device=DEVICE)
    weight = torch.randn(2, 5, *layer.spline_weight.shape, dtype=F64, device=DEVICE)
    base = torch.randn(5, *layer.base_weight.shape, dtype=F64, device=DEVICE)  # type: ignore[union-attr]
    x = torch.rand(2, 7, 3, dtype=F64, device=DEVICE)

    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.kan_linear(x, w, layer.grid, spline_order=3, base_weight=b, bias=layer.bias)

    want = torch.stack([torch.stack([f(x[i], weight[i, j], base[j]) for j in range(5)]) for i in range(2)])
    given = weight.movedim(0, outer) if outer else weight
    both = vmap(vmap(f, (None, inner, 0)), (0, outer, None))
    given = weight if not inner else weight.movedim(1, 2)
    given = given if not outer else given.movedim(0, 1)
    torch.testing.assert_close(both(x, given, base), want)
    rows = vmap(vmap(vmap(f, (0, None, None)), (None, 0, 0)), (0, 0, None))  # a row at a time
    torch.testing.assert_close(rows(x.unsqueeze(2), weight, base).squeeze(3), want)
    turned = vmap(vmap(f, (None, 0, 0)), (0, None, None))  # an x a call of a stack
    want = torch.stack([torch.stack([f(x[i], weight[0, j], base[j]) for j in range(5)]) for i in range(2)])
    torch.testing.assert_close(turned(x, weight[0], base), want)


@pytest.mark.long
def test_compiled_transforms() -> None:
    """vmap inside of a compiled function reaches the layers, whose ops have a rule for it."""
    net = KAN([3, 4, 2], device=DEVICE)
    x = torch.rand(9, 3, device=DEVICE)
    state = {name: torch.stack([p, 2 * p]).detach() for name, p in net.named_parameters()}

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        many = vmap(lambda s: functional_call(net, s, (x,)))(state)
        return vmap(net)(x), many

    for got, want in zip(torch.compile(both, backend="aot_eager")(x), both(x), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("basis", NAMES)
def test_bases_of_full_support(basis: str) -> None:
    """They lie side by side too."""
    inputs = build(full_support_case(basis, 6, 20, 4, 7, dtype=F64, points="inside"), DEVICE)

    def f(w: Tensor) -> Tensor:
        return F.basis_linear(inputs.x, w, inputs.grid if inputs.grid.numel() else None, basis=basis)

    weight = torch.stack([inputs.spline_weight, -2 * inputs.spline_weight])
    got = vmap(f)(weight)
    for n in range(2):
        torch.testing.assert_close(got[n], f(weight[n]))
