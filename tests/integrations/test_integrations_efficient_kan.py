"""efficient-kan on the kernels: the golden numbers, every method, and what falls back to its own code.

Each test runs on a stand-in of the peer's structure, and on the real package where it is on the path.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as torch_functional
from torch import Tensor, nn

import peer_efficient_kan
from kan_kernels import use_backend
from kan_kernels.integrations import accelerate, explain, is_accelerated
from kan_kernels.integrations import efficient_kan as drop_in

FIXTURES = Path(__file__).parents[1] / "fixtures"
FILES = sorted(path.stem for path in FIXTURES.glob("efficient_kan_*.npz"))
PEERS: dict[str, ModuleType] = {"stand-in": peer_efficient_kan}
if importlib.util.find_spec("efficient_kan") is not None:
    PEERS["efficient_kan"] = importlib.import_module("efficient_kan")
F64 = torch.float64


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> ModuleType:
    return PEERS[request.param]


def pair(peer: ModuleType, *sizes: int, dtype: torch.dtype = F64, **options: Any) -> tuple[Any, Any]:
    """A peer's layer and its accelerated copy, on knots that differ from feature to feature."""
    own = peer.KANLinear(*sizes, **options).to(dtype)
    with torch.no_grad():
        own.grid.mul_(1 + 0.2 * torch.rand(len(own.grid), 1)).add_(0.1 * torch.rand(len(own.grid), 1))
        for weight in own.parameters():
            weight.copy_(torch.randn_like(weight))
    fast = copy.deepcopy(own)
    report = accelerate(fast)
    assert len(report.taken) == 1 and not report.left, str(report)
    return own, fast


def results(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """y, the gradients of x and all parameters, and second derivatives of both kinds."""
    x = x.detach().requires_grad_()
    y = layer(x)
    dy = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).reshape(y.shape)
    first = torch.autograd.grad(y, [x, *layer.parameters()], dy, create_graph=True)
    mixed = sum((g.square().sum() for g in first), torch.zeros((), dtype=y.dtype))
    second = torch.autograd.grad(mixed, [x, *layer.parameters()])
    return [y.detach(), *(g.detach() for g in first), *second]


def same(got: Tensor, want: Tensor, tolerance: float = 1e-10) -> None:
    """To a tolerance of the largest entry: float64 rounding of two orders of summation, unless said."""
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * max(1.0, float(want.detach().abs().max())))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["own", "accelerated", "drop-in"])
def test_golden(peer: ModuleType, backend: str, kind: str, name: str) -> None:
    """The real package's y, dx, parameter gradients and second order, in its own parameter names."""
    with np.load(FIXTURES / f"{name}.npz", allow_pickle=False) as file:
        meta = json.loads(str(file["meta"]))
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}
    made = drop_in if kind == "drop-in" else peer
    sizes = [meta[key] for key in ("in_features", "out_features", "grid_size", "spline_order")]
    layer = made.KANLinear(*sizes).double()
    state = {key.split(":")[1]: data[key] for key in data if key.startswith(("param:", "buffer:"))}
    layer.load_state_dict(state)
    if kind == "accelerated":
        accelerate(layer)
        assert is_accelerated(layer)
    names = [key.removeprefix("grad:") for key in data if key.startswith("grad:")]
    parameters = dict(layer.named_parameters())
    assert set(names) == set(parameters)
    x = data["x"].clone().requires_grad_()
    with use_backend(backend):
        y = layer(x)
        dx, *grads = torch.autograd.grad(
            y, [x, *(parameters[key] for key in names)], data["gy"], create_graph=True
        )
        (hv,) = torch.autograd.grad(dx, x, data["v"])
    for got, want in zip((y, dx, hv), ("y", "dx", "hv"), strict=True):
        same(got, data[want])
    for key, grad in zip(names, grads, strict=True):
        same(grad, data[f"grad:{key}"])


@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("base", [nn.SiLU, nn.Identity, nn.GELU, nn.PReLU, lambda: torch.sin])
@pytest.mark.parametrize("sizes", [(3, 4, 5, 3), (2, 1, 1, 1), (1, 3, 7, 2), (4, 2, 2, 6)])
def test_all_derivatives(peer: ModuleType, sizes: tuple[int, ...], base: Any, scaler: bool) -> None:
    """With and without the scaler, any base activation: values, first and second derivatives."""
    own, fast = pair(peer, *sizes, base_activation=base, enable_standalone_scale_spline=scaler)
    x = 1.6 * torch.randn(9, sizes[0], dtype=F64)
    for got, want in zip(results(fast, x), results(own, x), strict=True):
        same(got, want, 1e-9)  # second derivatives of order-6 splines lose a digit


def test_it_runs_the_kernels(peer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """forward and update_grid of an accelerated layer never make the dense basis."""
    own, fast = pair(peer, 3, 4)
    x = torch.randn(100, 3, dtype=F64)
    calls = []
    monkeypatch.setattr(peer.KANLinear, "b_splines", lambda self, x: calls.append(1))
    fast(x).sum().backward()
    fast.update_grid(x)
    assert not calls
    with pytest.raises((AttributeError, TypeError)):
        own(x)
    assert calls


def test_base_activation_that_is_watched_or_works_in_place(peer: ModuleType) -> None:
    """Hooks of the activation see it run; SiLU in place changes what the spline sees, as in the peer."""
    own, fast = pair(peer, 3, 4)
    seen: list[Tensor] = []
    fast.base_activation.register_forward_hook(lambda module, args, out: seen.append(out))
    x = torch.randn(5, 3, dtype=F64)
    same(fast(x), own(x))
    assert len(seen) == 1
    own, fast = pair(peer, 3, 4, base_activation=lambda: nn.SiLU(inplace=True))
    with torch.no_grad():
        same(fast(x.clone()), own(x.clone()))


def test_leading_dimensions_and_no_rows(peer: ModuleType) -> None:
    own, fast = pair(peer, 3, 4)
    for shape in [(3,), (1, 3), (2, 5, 3)]:
        x = torch.randn(shape, dtype=F64)
        got, want = fast(x), own(x)
        assert got.shape == want.shape
        same(got, want)
    for shape in [(0, 3), (2, 0, 3)]:  # the real one cannot
        assert fast(torch.randn(shape, dtype=F64)).shape == (*shape[:-1], 4)


def test_nan_stays_in_its_row(peer: ModuleType) -> None:
    own, fast = pair(peer, 3, 4)
    x = torch.randn(5, 3, dtype=F64)
    x[2, 1] = torch.nan
    got, want = fast(x), own(x)
    assert want[2].isnan().all()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(peer: ModuleType, dtype: torch.dtype) -> None:
    """float32 and, after `.to`, 16 bits: as close to float64 as the peer's own code is, or closer."""
    own, fast = pair(peer, 6, 4, 3)
    x = torch.randn(64, 6, dtype=F64).to(dtype)
    own.to(dtype), fast.to(dtype)
    truth = copy.deepcopy(own).double()(x.double()).detach()
    got, want = fast(x), own(x)
    assert got.dtype == want.dtype == dtype
    error, theirs = (got.detach().double() - truth).abs().max(), (want.detach().double() - truth).abs().max()
    floor = 4 * torch.finfo(dtype).eps * float(truth.abs().max())  # one rounding of the result, and room
    assert float(error) <= max(2 * float(theirs), floor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", [nn.SiLU, nn.GELU])
def test_autocast(peer: ModuleType, dtype: torch.dtype, base: Any) -> None:
    """The same dtype as the peer's, and its numbers to the products' precision; gradients in float32."""
    own, fast = pair(peer, 6, 4, dtype=torch.float32, base_activation=base)
    x = torch.randn(32, 6)
    with torch.autocast("cpu", dtype):
        got, want = fast(x), own(x)
        chained = fast(x.to(dtype))
    assert got.dtype == want.dtype == chained.dtype == dtype
    same(got.float(), want.float(), 4 * torch.finfo(dtype).eps)
    got.float().sum().backward()
    assert fast.spline_weight.grad.dtype == torch.float32


@pytest.mark.parametrize("scaler", [True, False])
@pytest.mark.parametrize("margin", [0.01, 0.3])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_update_grid(peer: ModuleType, order: int, margin: float, scaler: bool) -> None:
    """Its own knots to the bit or a rounding, and its coefficients; twice, from knots that have moved."""
    own, fast = pair(peer, 5, 3, 6, order, enable_standalone_scale_spline=scaler)
    for scale in (0.8, 1.3):
        x = scale * torch.randn(400, 5, dtype=F64)
        own.update_grid(x, margin)
        fast.update_grid(x, margin)
        same(fast.grid, own.grid, 1e-14)
        same(fast.spline_weight.detach(), own.spline_weight.detach(), 1e-9)
        same(fast(x), own(x), 1e-9)


@pytest.mark.parametrize("case", ["few rows", "constant", "heavy ties"])
def test_update_grid_without_one_solution(
    peer: ModuleType, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where least squares have many solutions the peer's own code chooses: the same system, to the bit.

    torch's solver starts from memory that nobody wrote, and solves such a system in one way or another.
    """
    solved: list[tuple[Tensor, Tensor, Any]] = []
    solve = torch.linalg.lstsq

    def solved_once(a: Tensor, b: Tensor) -> Any:
        known = [s for s in solved if torch.equal(s[0], a) and torch.equal(s[1], b)]
        solved.append(known[0] if known else (a.clone(), b.clone(), solve(a, b)))
        return solved[-1][2]

    monkeypatch.setattr(torch.linalg, "lstsq", solved_once)
    own, fast = pair(peer, 3, 2, 8)
    x = {
        "few rows": torch.randn(4, 3, dtype=F64),
        "constant": torch.full((50, 3), 0.3, dtype=F64),
        "heavy ties": torch.randn(50, 3, dtype=F64).round(),
    }[case]
    own.update_grid(x)
    fast.update_grid(x)
    assert torch.equal(fast.grid, own.grid)
    assert len(solved) == 2 and solved[0] is solved[1]
    assert torch.equal(fast.spline_weight, own.spline_weight)


def test_update_grid_float32(peer: ModuleType) -> None:
    """In float32 the peer's least squares err by 1e-6 or so; ours stay within that of float64."""
    own, fast = pair(peer, 5, 3, dtype=torch.float32)
    x = torch.randn(1000, 5)
    truth = copy.deepcopy(own).double()
    truth.update_grid(x.double())
    own.update_grid(x), fast.update_grid(x)
    same(fast.grid, own.grid, 1e-6)
    same(fast.spline_weight.detach().double(), truth.spline_weight.detach(), 2e-6)
    same(own.spline_weight.detach().double(), truth.spline_weight.detach(), 1e-4)


def test_regularization_loss(peer: ModuleType) -> None:
    own, fast = pair(peer, 4, 3)
    want, got = own.regularization_loss(0.5, 2.0), fast.regularization_loss(0.5, 2.0)
    assert torch.equal(got, want)
    (grad,) = torch.autograd.grad(got, fast.spline_weight)
    assert torch.equal(grad, torch.autograd.grad(want, own.spline_weight)[0])


def test_training_is_the_same(peer: ModuleType) -> None:
    """Twenty steps of AdamW, a grid update in between: the same losses."""
    own = peer.KAN([3, 6, 2]).double()
    fast = copy.deepcopy(own)
    accelerate(fast)
    x = torch.randn(200, 3, dtype=F64)
    target = torch.stack([x.prod(1), torch.sin(3 * x[:, 0])], 1)
    losses: list[list[float]] = []
    for model in (own, fast):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses.append([])
        for step in range(20):
            optimizer.zero_grad()
            loss = torch_functional.mse_loss(model(x, update_grid=step == 10), target)
            loss.backward()
            optimizer.step()
            losses[-1].append(float(loss.detach()))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    assert losses[0][-1] < losses[0][0]


def test_fallbacks_at_run_time(peer: ModuleType) -> None:
    """What the kernels would compute differently, or not at all, is computed by the peer, errors included."""
    own, fast = pair(peer, 3, 4)
    x = torch.randn(6, 3, dtype=F64)
    for layer in (own, fast):
        with pytest.raises(RuntimeError):
            layer(x.float())
        with pytest.raises(AssertionError):
            layer(x[:, :2])
    assert "runs the kernels" in explain(fast)
    for layer in (own, fast):
        layer.grid[1, 4] = layer.grid[1, 5]  # 0/0 in the peer
    got, want = fast(x), own(x)
    assert want.isnan().any() and torch.equal(got.isnan(), want.isnan())
    assert "knots coincide" in explain(fast)
    own, fast = pair(peer, 3, 4)
    own.grid.requires_grad_(), fast.grid.requires_grad_()
    grads = [torch.autograd.grad(layer(x).sum(), layer.grid)[0] for layer in (own, fast)]
    assert grads[0].abs().max() > 0 and torch.equal(*grads)
    assert "asks for a gradient" in explain(fast)


@pytest.mark.parametrize("place", ["instance", "class", "getattr", "helper"])
def test_attributes_that_the_peer_has_not(place: str) -> None:
    """A probe sees one moment: a forward that reads more can change later. What is only carried may stay."""

    class Copy(peer_efficient_kan.KANLinear):
        def forward(self, x: Tensor) -> Tensor:
            return self.read() * super().forward(x)

        def read(self) -> float:
            return self.twice() / 2

        def twice(self) -> float:
            return 2 * self.gain  # type: ignore[operator]

    class ByName(Copy):
        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, "gain", 1.0) * super().forward(x)

    cls = ByName if place == "getattr" else Copy
    for name in ("b_splines", "curve2coeff", "update_grid"):
        setattr(cls, name, vars(peer_efficient_kan.KANLinear)[name])
    layer = cls(3, 4).double()
    layer.note = "a name"  # type: ignore[assignment]
    (cls if place == "class" else layer).gain = 1.0  # type: ignore[assignment]
    why = accelerate(layer).left[0].why
    assert "reads gain, which efficient-kan's does not" in why or "passes the layer itself on" in why
    layer = peer_efficient_kan.KANLinear(3, 4)
    layer.note, layer.gain = "a name", 1.0  # type: ignore[assignment]
    assert accelerate(layer).taken


def test_methods_replaced_later(peer: ModuleType) -> None:
    """b_splines put on the instance after `accelerate` is what forward and update_grid of the peer use."""
    own, fast = pair(peer, 3, 4)
    x = torch.randn(100, 3, dtype=F64)
    for layer in (own, fast):
        layer.b_splines = lambda x, layer=layer: type(layer).b_splines(layer, x).flip(-1)
    y = own(x)
    same(fast(x), y, 0)
    assert "b_splines was replaced on this instance" in explain(fast)
    del own.b_splines, fast.b_splines
    assert (own(x) - y).abs().max() > 1e-3
    same(fast(x), own(x))


def test_knots_written_past_the_count(peer: ModuleType) -> None:
    """A write through .data is no new version, but other values."""
    own, fast = pair(peer, 3, 4)
    x = torch.randn(20, 3, dtype=F64)
    fast(x)
    for layer in (own, fast):
        layer.grid.data[:, 5] = layer.grid.data[:, 4]
    got, want = fast(x), own(x)
    assert want.isnan().any() and torch.equal(got.isnan(), want.isnan())
    for layer in (own, fast):
        layer.grid.data.copy_(torch.linspace(-2, 2, layer.grid.shape[1]))
    same(fast(x), own(x))
    assert "runs the kernels" in explain(fast)


def test_example_runs(
    peer: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both trainings end with the same loss, and only the second one runs the kernels."""
    example = importlib.import_module("examples.use_efficient_kan")
    dense, code = [0], peer.KANLinear.forward.__code__

    def count(frame: Any, event: str, argument: Any) -> None:
        if frame.f_code is code and event == "call":
            dense[0] += len(frame.f_locals["x"]) == 1000  # rows: no probe has as many

    sys.setprofile(count)
    try:
        example.main(peer.__name__, steps=5)
    finally:
        sys.setprofile(None)
    out = capsys.readouterr().out
    assert "accelerate: 3 taken, 0 left" in out
    assert dense[0] == 3 * (5 + 1)  # steps and grid update of the first training
    losses = [line.split("loss ")[1].split(",")[0] for line in out.splitlines() if "loss" in line]
    assert len(losses) == 2 and losses[0] == losses[1]


def test_example_needs_the_peer() -> None:
    """The drop-in runs the kernels by itself, so there would be nothing to compare."""
    example = importlib.import_module("examples.use_efficient_kan")
    with pytest.raises(SystemExit, match="is not taken for efficient-kan"):
        example.main("kan_kernels.integrations.efficient_kan", steps=1)
    with pytest.raises(SystemExit, match="No module named 'no_such_peer': put"):
        example.main("no_such_peer")
