"""A step on a differential equation as one graph: residual, loss and the gradients of all parameters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, jvp, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from harness import child
from kan_kernels import KAN

F64 = torch.float64
Parameters = dict[str, Tensor]
Step = Callable[[Parameters, Tensor], tuple[Parameters, Tensor]]


class Scaled(nn.Module):
    """torch's own layers behind an input that is scaled, as many networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([2.0, 3.0], dtype=F64))
        self.layers = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).to(F64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x * self.scale)


def ours() -> nn.Module:
    return KAN([2, 5, 1], dtype=F64)


NETWORKS = {"KAN": ours, "nn.Linear": Scaled}


def points(rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    return torch.rand(rows, 2, generator=generator, dtype=F64) * 1.6 - 0.8


def by_grad(net: nn.Module, p: Parameters, x: Tensor) -> Tensor:
    """u_xx + u_yy, by gradients of sums over the points."""

    def slope(x: Tensor) -> Tensor:
        return grad(lambda v: functional_call(net, p, (v,)).sum())(x)

    bends = [grad(lambda v, i=i: slope(v)[:, i].sum())(x)[:, i] for i in range(2)]
    return bends[0] + bends[1]


def by_jacrev(net: nn.Module, p: Parameters, x: Tensor) -> Tensor:
    """The same, of one point under vmap."""

    def u(v: Tensor) -> Tensor:
        return functional_call(net, p, (v,))[0]

    return vmap(lambda v: torch.diagonal(jacrev(jacrev(u))(v)).sum())(x)


def by_hessian(net: nn.Module, p: Parameters, x: Tensor) -> Tensor:
    """The same, forward over reverse."""
    return vmap(lambda v: torch.diagonal(hessian(lambda w: functional_call(net, p, (w,))[0])(v)).sum())(x)


def by_jvp(net: nn.Module, p: Parameters, x: Tensor) -> Tensor:
    """The same, forward over forward."""
    found = torch.zeros(len(x), dtype=F64)
    for way in torch.eye(2, dtype=F64):

        def slope(v: Tensor, way: Tensor = way) -> Tensor:
            return jvp(lambda w: functional_call(net, p, (w,)), (v,), (way.expand_as(v).clone(),))[1]

        found = found + jvp(slope, (x,), (way.expand_as(x).clone(),))[1][:, 0]
    return found


def step_of(net: nn.Module, laplacian: Callable[[nn.Module, Parameters, Tensor], Tensor]) -> Step:
    """(parameters, points) -> (gradients, loss)."""
    return lambda p, x: grad_and_value(lambda q: (laplacian(net, q, x) - x.sum(1)).square().mean())(p)


def values(net: nn.Module) -> Parameters:
    return {name: value.detach() for name, value in net.named_parameters()}


def by_autograd(net: nn.Module, x: Tensor) -> tuple[Parameters, Tensor]:
    """The step as people write it."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    bends = [torch.autograd.grad(slope[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(2)]
    loss = (bends[0] + bends[1] - x.detach().sum(1)).square().mean()
    found = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
    return dict(zip(values(net), found, strict=True)), loss.detach()


def recorded(net: nn.Module) -> GraphModule:
    return make_fx(step_of(net, by_grad), tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        values(net), points(7)
    )


def same(got: tuple[Parameters, Tensor], want: tuple[Parameters, Tensor]) -> None:
    """To rounding: the same sums in another order."""
    torch.testing.assert_close(got[1], want[1], rtol=1e-11, atol=1e-11)
    assert got[0].keys() == want[0].keys()
    for name, value in want[0].items():
        torch.testing.assert_close(got[0][name], value, rtol=1e-11, atol=1e-11, msg=lambda m, n=name: n + m)


def test_recorded_step() -> None:
    """make_fx records our ops and nothing else of ours, for every number of points and new parameters."""
    net = ours()
    graph = recorded(net)
    called = {str(node.target).split(".")[1] for node in graph.graph.nodes if "kan_" in str(node.target)}
    assert called == {"kan_linear", "kan_linear_grad_input", "kan_linear_grad_weight"}
    for rows in (7, 1, 30):
        same(graph(values(net), points(rows)), by_autograd(net, points(rows)))
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(1.5)
    same(graph(values(net), points(5)), by_autograd(net, points(5)))


@pytest.mark.long
def test_recorded_step_compiles() -> None:
    """Without a graph break, once for five numbers of points, by Inductor."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    net = ours()
    count = CompileCounterWithBackend("inductor")
    compiled = torch.compile(recorded(net), backend=count, fullgraph=True, dynamic=True)
    for rows in (9, 7, 64, 30, 11):
        same(compiled(values(net), points(rows)), by_autograd(net, points(rows)))
    assert count.frame_count == 1
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("laplacian", (by_grad, by_jacrev))
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_step_compiles_as_it_is(make: Callable[[], nn.Module], laplacian: Callable[..., Tensor]) -> None:
    """torch.compile of the step itself, reverse over reverse, in one graph."""
    torch._dynamo.reset()
    net = make()
    compiled = torch.compile(step_of(net, laplacian), backend="aot_eager", fullgraph=True)
    same(compiled(values(net), points(9)), by_autograd(net, points(9)))
    torch._dynamo.reset()


@pytest.mark.long
@pytest.mark.parametrize("laplacian", (by_hessian, by_jvp))
def test_forward_mode_within_compile(laplacian: Callable[..., Tensor]) -> None:
    """What docs/troubleshooting.md says: torch fails for its own layers where it fails for ours, and gives
    eager's numbers where it does not. Each in a process of its own, which a failed compilation leaves behind.
    """
    found = [
        child(
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"from test_compiled_steps import try_out; try_out({name!r}, {laplacian.__name__!r})"
        ).split()[-1]
        for name in NETWORKS
    ]
    assert found[0] == found[1], "correct docs/troubleshooting.md"
    assert found[0] in ("compiles", "fails")


def try_out(name: str, laplacian: str) -> None:
    """Print whether a step compiles."""
    torch.manual_seed(0)
    net, x = NETWORKS[name](), points(9)
    step = step_of(net, globals()[laplacian])
    same(step(values(net), x), by_autograd(net, x))
    try:
        got = torch.compile(step, backend="aot_eager", fullgraph=True)(values(net), x)
    except torch._dynamo.exc.TorchRuntimeError:
        print("fails")
        return
    same(got, by_autograd(net, x))
    print("compiles")
