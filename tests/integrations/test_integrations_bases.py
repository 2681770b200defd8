"""FastKAN and ChebyKAN on the kernels: the golden numbers, every option, dtypes, copies and transforms.

Each test runs on a stand-in of the peers' structure, and on the real ones where they are on the path.
"""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import basis_forms as forms
from kan_kernels import explain, use_backend
from kan_kernels.integrations import accelerate, is_accelerated, restore
from peer_bases import CHEBY, F64, FAST, pair, results, same, same_results

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(params=FAST)
def fast_peer(request: pytest.FixtureRequest) -> type[Any]:
    return FAST[request.param]


@pytest.fixture(params=CHEBY)
def cheby_peer(request: pytest.FixtureRequest) -> type[Any]:
    return CHEBY[request.param]


@pytest.mark.parametrize("kind", ["own", "accelerated"])
@pytest.mark.parametrize("name", ["fast_kan", "cheby_kan"])
def test_golden(fast_peer: type[Any], cheby_peer: type[Any], backend: str, name: str, kind: str) -> None:
    """The real layers' y, dx, parameter gradients and second order, in their own parameter names."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
    sizes = meta["in_features"], meta["out_features"]
    layer = fast_peer(*sizes) if name == "fast_kan" else cheby_peer(*sizes, meta["degree"])
    state = {k.split(":")[1]: v for k, v in data.items() if k.startswith(("param:", "buffer:"))}
    layer.double().load_state_dict(state)
    if kind == "accelerated":
        accelerate(layer)
        assert is_accelerated(layer) and list(layer.state_dict()) == list(state)
    trained = {k: p for k, p in layer.named_parameters() if p.requires_grad}
    assert {f"grad:{k}" for k in trained} == {k for k in data if k.startswith("grad:")}
    x = data["x"].clone().requires_grad_()
    with use_backend(backend):
        y = layer(x)
        dx, *grads = torch.autograd.grad(y, [x, *trained.values()], data["gy"], create_graph=True)
        (hv,) = torch.autograd.grad(dx, x, data["v"])
    for got, want in zip((y, dx, hv), ("y", "dx", "hv"), strict=True):
        same(got, data[want], 1e-10)
    for key, grad in zip(trained, grads, strict=True):
        same(grad, data[f"grad:{key}"], 1e-10)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize(
    "activation", [nn.functional.silu, nn.SiLU(), nn.Identity(), torch.sin, nn.PReLU(), None]
)
def test_fast_kan_options(fast_peer: type[Any], activation: Any, norm: bool) -> None:
    """With and without layernorm and base, any base activation, one or many features: all derivatives."""
    options: dict[str, Any] = {"use_base_update": activation is not None, "use_layernorm": norm}
    if activation is not None:
        options["base_activation"] = activation
    for sizes in ((5, 4, -2.0, 2.0, 6), (2, 1, 0.0, 3.0, 2)) if norm else ((1, 3, -1.0, 2.0, 5),):
        own, fast = pair(fast_peer(*sizes, **options))
        x = torch.randn(9, sizes[0], dtype=F64)
        for switch in ((), (True,), (False,)):
            same_results(results(fast, x, *switch), results(own, x, *switch))
        same(fast(x, use_layernorm=False), own(x, use_layernorm=False))


@pytest.mark.parametrize("degree", [0, 1, 4, 40])
def test_cheby_kan_degrees(cheby_peer: type[Any], degree: int) -> None:
    own, fast = pair(cheby_peer(3, 4, degree))
    x = 0.8 * torch.randn(9, 3, dtype=F64)
    if degree == 0:
        return same(fast(x), own(x))
    return same_results(results(fast, x), results(own, x))


def test_they_run_the_kernels(fast_peer: type[Any], cheby_peer: type[Any], monkeypatch: Any) -> None:
    """No accelerated layer calls the code of its peer, whose dense basis is what takes the time."""
    fast, cheby = pair(fast_peer(3, 4))[1], pair(cheby_peer(3, 4, 5))[1]
    x = torch.randn(5, 3, dtype=F64)
    want = fast(x), cheby(x)

    def forbidden(*args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("the peer's own code ran")

    monkeypatch.setattr(fast_peer, "forward", forbidden)
    monkeypatch.setattr(cheby_peer, "forward", forbidden)
    assert torch.equal(fast(x), want[0]) and torch.equal(cheby(x), want[1])
    restore(fast)
    with pytest.raises(AssertionError, match="own code"):
        fast(x)


def test_shapes(fast_peer: type[Any], cheby_peer: type[Any]) -> None:
    """Leading dimensions: kept by FastKAN; ChebyKAN makes rows of whatever comes, images too."""
    own, fast = pair(fast_peer(4, 3))
    for shape in [(4,), (2, 5, 4)]:
        x = torch.randn(shape, dtype=F64)
        same(fast(x), own(x))
    assert fast(torch.randn(2, 0, 4, dtype=F64)).shape == (2, 0, 3)  # the real one cannot
    own, fast = pair(cheby_peer(4, 3, 5))
    for shape in [(4,), (2, 5, 4), (3, 2, 2), (1, 8)]:
        x = torch.randn(shape, dtype=F64)
        same(fast(x), own(x))
    for layer in (own, fast):
        with pytest.raises(RuntimeError):
            layer(torch.randn(3, 3, dtype=F64))


def test_saturation(cheby_peer: type[Any]) -> None:
    """Where tanh is 1 exactly the peer's gradient is NaN; the kernels' is its limit, 0."""
    own, fast = pair(cheby_peer(2, 3, 6))
    x = torch.tensor([[40.0, -40.0], [0.1, 0.2]], dtype=F64, requires_grad=True)
    same(fast(x), own(x))
    (theirs,), (ours,) = (torch.autograd.grad(layer(x).sum(), x) for layer in (own, fast))
    assert theirs[0].isnan().all() and torch.equal(ours[0], torch.zeros(2, dtype=F64))
    same(ours[1], theirs[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["fast", "cheby"])
def test_other_dtypes(fast_peer: type[Any], cheby_peer: type[Any], name: str, dtype: torch.dtype) -> None:
    """After `.to`: as close to float64 as the peer's own code is, or closer; and under autocast."""
    own, fast = pair(fast_peer(6, 4) if name == "fast" else cheby_peer(6, 4, 3))
    x = torch.randn(64, 6, dtype=F64).to(dtype)
    own.to(dtype), fast.to(dtype)
    truth = copy.deepcopy(own).double()(x.double()).detach()
    got, want = fast(x), own(x)
    assert got.dtype == want.dtype == dtype
    error, theirs = (float((y.detach().double() - truth).abs().max()) for y in (got, want))
    # one rounding of the result and of the layernorm's, and room
    assert error <= max(2 * theirs, 8 * torch.finfo(dtype).eps * float(truth.abs().max()))
    if dtype != torch.float32:
        own.float(), fast.float()
        with torch.autocast("cpu", dtype):
            got, want = fast(x.float()), own(x.float())
        assert got.dtype == want.dtype == dtype
        same(got.double(), want.double(), 8 * torch.finfo(dtype).eps)


def test_other_inputs(fast_peer: type[Any], cheby_peer: type[Any]) -> None:
    """x of another dtype or width is the peer's to refuse, or to take."""
    own, fast = pair(fast_peer(3, 2, use_layernorm=False, use_base_update=False))
    x = torch.randn(6, 3)
    assert torch.equal(fast(x), own(x))  # float32 beside float64 centres: torch promotes
    for layer in (*pair(fast_peer(3, 2)), *pair(cheby_peer(3, 2, 4))):
        with pytest.raises(RuntimeError):
            layer(x)
        with pytest.raises(RuntimeError):
            layer(x[:, :2].double()[:4])


def test_centres_and_width_are_followed(fast_peer: type[Any]) -> None:
    """Changed in place, by a cast or by loading; nothing of ours stays behind."""
    own, fast = pair(fast_peer(3, 2))
    before = set(vars(own))
    x = torch.randn(6, 3, dtype=F64)
    fast(x)
    with torch.no_grad():
        own.rbf.grid.mul_(0.5), fast.rbf.grid.mul_(0.5)
    same(fast(x), own(x))
    own.rbf.denominator = fast.rbf.denominator = 1.25
    same(fast(x), own(x))
    state = fast_peer(3, 2, -1.0, 1.0).double().state_dict()
    own.load_state_dict(state), fast.load_state_dict(state)
    same(fast(x), own(x))
    assert torch.equal(pickle.loads(pickle.dumps(fast))(x), fast(x))
    twin = copy.deepcopy(fast)
    assert {name for name in vars(twin) if not name.startswith("_kan_kernels_")} == before
    assert torch.equal(twin(x), fast(x))
    restore(fast)
    assert set(vars(fast)) == before and torch.equal(fast(x), own(x))


def network() -> nn.Sequential:
    layers = [forms.FastKANLayer(3, 5), forms.FastKANLayer(5, 4, use_layernorm=False)]
    return nn.Sequential(*layers, forms.ChebyKANLayer(4, 2, 5)).double()


@pytest.mark.long
def test_compile() -> None:
    """torch.compile of accelerated layers: no graph break, the same numbers and gradients."""
    own = network()
    fast = copy.deepcopy(own)
    assert len(accelerate(fast).taken) == 3
    x = torch.randn(9, 3, dtype=F64)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    got, want = compiled(x), own(x)
    same(got, want)
    got.sum().backward(), want.sum().backward()
    for a, b in zip(fast.parameters(), own.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None and b.grad is not None:
            same(a.grad, b.grad)


def test_functional_transforms() -> None:
    """torch.func: per-sample gradients equal the peer's; so do those of the centres, which its code gives."""
    own = network()
    fast = copy.deepcopy(own)
    accelerate(fast)
    x = torch.randn(5, 3, dtype=F64)

    def per_sample(model: nn.Module, centres: bool) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

        chosen = {k: p.detach() for k, p in model.named_parameters() if centres or p.requires_grad}
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(chosen, x)

    for centres in (False, True):
        got, want = per_sample(fast, centres), per_sample(own, centres)
        for name, value in want.items():
            same(got[name], value)


@pytest.mark.parametrize("child", ["spline_linear", "base_linear"])
def test_a_child_that_becomes_another_module(child: str) -> None:
    """Without a weight of its own name too: the layer's own code runs it, and says so."""
    own: Any = forms.FastKANLayer(3, 2).double()
    fast = copy.deepcopy(own)
    assert accelerate(fast).taken
    for layer in (own, fast):
        setattr(layer, child, nn.Sequential(getattr(layer, child), nn.Tanh()))
    x = torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(fast(x), own(x))
    assert f"{child} has hooks or another forward than Linear's" in explain(fast)
