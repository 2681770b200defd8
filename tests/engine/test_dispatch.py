"""One dispatch for all ops: what it chooses, what it says, and what runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import FUSED
from kan_kernels import KAN, KANLinear, explain, use_backend
from kan_kernels import functional as F
from kan_kernels._core.problem import COMPOSED, FAMILIES, OPS, Problem
from kan_kernels._engine import cost_model, dispatch
from kan_kernels.backends import BACKENDS, FUNCTIONS, native
from kan_kernels.integrations import fast_kan
from kan_kernels.training.direct import Weights, squared_errors

NATIVE = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")


def problem(op: str, device: str = "cpu", **facts: Any) -> Problem:
    basis = "rbf" if op == "layer_norm_rbf" else "bspline"
    order = 0 if basis == "rbf" else 3
    return Problem(device, torch.float32, torch.float32, 8, 4, 8, order, basis=basis, op=op, **facts)


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_every_op_is_explained(op: str) -> None:
    """The library runs it on the CPU; the reference composes it or is plain torch; `explain` says either."""
    basis = {"basis": "rbf", "functions": 8} if op == "layer_norm_rbf" else {}
    assert dispatch.choose(problem(op)).backend is native
    assert "native: automatic choice: " in explain((8, 4), op=op, **basis)
    said = explain((8, 4), op=op, backend="reference", **basis)
    assert "reference: asked for by backend=" in said
    assert (COMPOSED.get(op, "asked") in said) and ((op in COMPOSED) == ("composed of" in said))
    with pytest.raises(ValueError, match="op: got 'fold', expected one of 'kan_linear', 'kan_activation'"):
        explain((8, 4), op="fold")
    other = "bspline" if op == "layer_norm_rbf" else "rbf"
    if op not in FAMILIES:
        with pytest.raises(ValueError, match=f"basis: got '{other}', expected one of .* for the op '{op}'"):
            explain((8, 4), op=op, basis=other)


@NATIVE
def test_an_op_that_the_backend_lacks() -> None:
    """Asked for Triton, which has layers alone, sums over rows are plain torch, with the reason."""
    can_run = BACKENDS["triton"].can_run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            BACKENDS["triton"], "can_run", lambda p: None if p.op == "kan_linear" else f"no kernel of {p.op}"
        )
        choice = dispatch.choose(problem("edge_l1"), "triton")
        assert choice.backend is BACKENDS["reference"] and choice.passed_over == {
            "triton": "no kernel of edge_l1"
        }
        composed = dispatch.choose(problem("kan_conv"), "triton")
        assert composed.backend is BACKENDS["triton"] and "composed of kan_linear: no kernel" in composed.why
    assert BACKENDS["triton"].can_run is can_run


def test_the_reference_gives_the_same_sums() -> None:
    """What `use_backend` forces is what runs, with the same numbers."""
    torch.manual_seed(0)
    x, weight = torch.rand(50, 2, dtype=torch.float64) * 2 - 1, torch.randn(2, 8, 3, dtype=torch.float64)
    grid = torch.linspace(-2.2, 2.2, 12, dtype=torch.float64).repeat(2, 1)
    results = []
    for name in (*FUSED, "reference"):
        with use_backend(name):
            l1 = F.edge_l1(x, weight, grid, spline_order=3, base=None)
            results.append((l1, *F.edge_moments(x, weight, grid, spline_order=3, base=None)))
    for result in results:
        for got, want in zip(result, results[-1], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_a_third_fused_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a backend that the cost model does not know stays behind those that it does."""
    other = SimpleNamespace(
        NAME="other",
        DIFFERENTIABLE=False,
        STACKS=False,
        can_run=lambda p: None,
        why=lambda p: "kernels of somebody else",
    )
    times = (("native", 2.0), ("triton", 1.0))
    costs = {name: cost_model.Cost("dense", {"forward": time}) for name, time in times}
    monkeypatch.setattr(dispatch, "_gpu_costs", lambda p: costs)
    for name in ("native", "triton"):
        monkeypatch.setattr(BACKENDS[name], "can_run", lambda p: None)
    monkeypatch.setattr(BACKENDS["triton"], "why", lambda p: "Triton's")
    monkeypatch.setitem(BACKENDS, "other", other)
    choice = dispatch.choose(problem("kan_linear", "cuda"))
    assert choice.backend.NAME == "triton"
    assert choice.passed_over["other"] == "the cost model does not know it"
    for name in ("native", "triton"):
        monkeypatch.setattr(BACKENDS[name], "can_run", lambda p: "not here")
    assert dispatch.choose(problem("kan_linear", "cuda")).backend.NAME == "other"


def _in_one_op(x: Tensor) -> Tensor:
    layer = fast_kan.FastKANLayer(2, 2, num_grids=4).double()
    result: Tensor = layer(x)
    return result


def _network(x: Tensor) -> Tensor:
    """A step of the training too, which calls kernels without autograd."""
    model = KAN([2, 2], grid_size=2, spline_order=1).double()
    for weights in (Weights(1.0, 1.0, 1.0), None):
        errors = squared_errors(model, x.detach(), torch.ones(5, 2, dtype=x.dtype), weights)
        assert errors is not None
        errors().backward(1.0)
    model(x.detach()).sum().backward()
    result: Tensor = model(x)
    return result


_WEIGHT, _GRID = torch.ones(2, 3, 2, dtype=torch.float64), torch.linspace(-2, 2, 5).double().repeat(2, 1)
_SPLINE: dict[str, Any] = {"spline_order": 1, "base": None}
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "kan_linear": lambda x: F.kan_linear(x, _WEIGHT, _GRID, **_SPLINE),
    "kan_activation": lambda x: F.kan_activation(x, _WEIGHT, _GRID, **_SPLINE),
    "kan_conv": lambda x: F.kan_conv(x.t()[None], _WEIGHT[:, :, None].expand(2, 3, 2, 2), _GRID, **_SPLINE),
    "edge_gram": lambda x: F.edge_moments(x, _WEIGHT, _GRID, **_SPLINE)[0],
    "edge_l1": lambda x: F.edge_l1(x, _WEIGHT, _GRID, **_SPLINE),
    "layer_norm_rbf": _in_one_op,
    "kan_network": _network,
}


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_a_third_backend_runs_every_op(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is chosen is what runs, with the gradients and what they are composed of; nobody else does."""
    ran: list[str] = []

    def recorded(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: ran.append(name) or run(*args)

    def refused(*_: Any) -> None:
        raise AssertionError("native was not chosen")

    other = SimpleNamespace(
        NAME="other",
        DIFFERENTIABLE=False,
        STACKS=False,
        NAMESPACE=None,
        can_run=lambda p: None,
        why=lambda p: "kernels of somebody else",
    )
    for name in {name for names in FUNCTIONS.values() for name in names}:
        setattr(other, name, recorded(name, getattr(native, name)))
        monkeypatch.setattr(native, name, refused)
    monkeypatch.setitem(BACKENDS, "other", other)
    basis = {"basis": "rbf", "functions": 8} if op == "layer_norm_rbf" else {}
    assert ": other: asked for by backend=" in explain((8, 4), op=op, backend="other", **basis)
    torch.manual_seed(0)
    x = torch.rand(5, 2, dtype=torch.float64, requires_grad=True)
    with use_backend("other"):
        y = CALLS[op](x)
        (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
        among = FUNCTIONS["kan_linear"] + FUNCTIONS["edge_l1"] if op == "kan_network" else ()
        assert op in ran or op == "edge_gram"
        assert set(ran) <= {*FUNCTIONS[op], *among} and len(set(ran)) > 1
        (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        torch.autograd.grad(first.sum(), x, allow_unused=True)


def test_the_contract_names_what_a_backend_has() -> None:
    """Each backend has all functions of the ops that it runs, and with a namespace their ops."""
    for module in BACKENDS.values():
        for op, names in FUNCTIONS.items():
            basis = problem(op).basis
            runs = any(module.can_run(problem(op, device)) is None for device in ("cpu", "cuda"))
            assert not runs or all(hasattr(module, name) for name in names), (module.NAME, op, basis)
        if module.NAMESPACE is not None:
            ops = getattr(torch.ops, module.NAMESPACE)
            of_module = [n for names in FUNCTIONS.values() for n in names if hasattr(module, n)]
            assert of_module and all(hasattr(ops, name) for name in of_module)
            assert module.LINEAR_OP.name().endswith("::kan_linear")
            assert module.ACTIVATION_OP.name().endswith("::kan_activation")
    assert set(FUNCTIONS) == set(OPS)


@NATIVE
def test_compiled_calls_see_the_backend_of_their_thread() -> None:
    """Threads that enter and leave use_backend in turns, and call what is compiled in between."""
    graphs: list[bool] = []

    def compiler(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(any("kan_kernels" in str(node.target) for node in graph.graph.nodes))
        return graph.forward

    def in_thread(call: Any) -> None:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    layer, x = KANLinear(3, 2), torch.rand(4, 3)
    torch._dynamo.reset()
    compiled = torch.no_grad()(torch.compile(layer, backend=compiler, fullgraph=True))
    entered, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with use_backend("reference"):
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=stay)
    other.start()
    entered.wait(60)
    compiled(x)  # of this thread, which has the automatic choice
    with use_backend("reference"):
        leave.set()
        other.join()
        compiled(x)
        in_thread(lambda: compiled(x))  # the first graph, or its like under the modes of a new thread
    compiled(x)
    assert graphs in ([True, False], [True, False, True]) and dispatch.forced_backend() is None
