"""While a layer is written down as operations of torch, its own code runs: traces know no kernels."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import peer_efficient_kan as efficient
from benchmarks import basis_forms as forms
from kan_kernels.integrations import accelerate, is_accelerated
from pykan_cases import kan, room  # noqa: F401

MAKE: dict[str, Callable[[], Any]] = {
    "efficient-kan": lambda: efficient.KANLinear(3, 2),
    "FastKAN": lambda: forms.FastKANLayer(3, 2),
    "ChebyKAN": lambda: forms.ChebyKANLayer(3, 2, 4),
    "FourierKAN": lambda: forms.NaiveFourierKANLayer(3, 2, 5),
    "pykan layer": lambda: FirstResult(kan.KANLayer(in_dim=3, out_dim=2)),
    "pykan model": lambda: kan.KAN(width=[3, 2], auto_save=False),
}


class FirstResult(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.fixture(params=MAKE)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module]]:
    """A layer and its accelerated twin."""
    torch.manual_seed(0)
    own = MAKE[request.param]()
    fast = copy.deepcopy(own)
    assert accelerate(fast).taken
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield own, fast


def check(own: nn.Module, traced: Callable[[Tensor], Tensor]) -> None:
    for rows in (5, 9):
        x = torch.randn(rows, 3)
        torch.testing.assert_close(traced(x), own(x), rtol=1e-5, atol=1e-5)


def test_jit_trace(pair: tuple[nn.Module, nn.Module]) -> None:
    """The trace holds no op of ours, runs on other batches, can be saved, and the layer stays accelerated."""
    own, fast = pair
    x = torch.randn(4, 3)
    try:
        torch.jit.trace(own, x, check_trace=False)
    except TypeError:  # pykan's models have a property that raises before they were run
        with pytest.raises(TypeError):
            torch.jit.trace(fast, x, check_trace=False)
        return
    traced = torch.jit.trace(fast, x, check_trace=False)
    assert "kan_kernels::" not in str(traced.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    check(own, torch.jit.load(file))
    assert any(map(is_accelerated, fast.modules()))
    check(own, fast)


def test_graph_of_tensorboard_and_fvcore(pair: tuple[nn.Module, nn.Module]) -> None:
    """Both take torch.jit's graph, parameters included."""
    own, fast = pair
    graph, _ = torch.jit._get_trace_graph(fast, (torch.randn(4, 3),))
    assert "kan_kernels::" not in str(graph)
    wanted, _ = torch.jit._get_trace_graph(own, (torch.randn(4, 3),))
    assert [n.kind() for n in graph.nodes()] == [n.kind() for n in wanted.nodes()]


@pytest.mark.long
@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx(pair: tuple[nn.Module, nn.Module], dynamo: bool, tmp_path: Any) -> None:
    """Either exporter writes what it writes of the layer's own code, and the file computes it."""
    own, fast = pair
    x, outcomes = torch.randn(4, 3), []
    for name, layer in (("own", own), ("fast", fast)):
        file = tmp_path / f"{name}.onnx"
        try:
            torch.onnx.export(layer, (x,), str(file), dynamo=dynamo)
            session = onnxruntime.InferenceSession(str(file))
        except (
            Exception
        ) as error:  # pykan's models cannot be exported, and the runtime has no acos of float64
            outcomes.append(type(error).__name__)
            continue
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})[:1]
        torch.testing.assert_close(torch.from_numpy(y), own(x).detach(), rtol=1e-4, atol=1e-4)
        outcomes.append("file")
    assert outcomes[0] == outcomes[1]


def test_fx(pair: tuple[nn.Module, nn.Module]) -> None:
    """torch.fx traces what it can of the layer's own code, and says of the rest what it says there."""
    own, fast = pair
    outcomes: list[Any] = []
    for layer in (own, fast):
        try:
            outcomes.append(torch.fx.symbolic_trace(layer))
        except Exception as error:
            outcomes.append(type(error))
    if any(isinstance(outcome, type) for outcome in outcomes):
        assert outcomes[0] is outcomes[1]
    else:
        check(own, outcomes[1])
