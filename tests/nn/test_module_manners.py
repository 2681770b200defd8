"""What users of torch.nn do with any module in their first week."""

from __future__ import annotations

import copy
import io
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kan_kernels import KAN, KANConv1d, KANConv2d, KANConv3d, KANLinear
from kan_kernels import functional as F
from kan_kernels.functional import conv
from kan_kernels.grids import refine, update_grid
from kan_kernels.integrations import cheby_kan, convert, efficient_kan, fast_kan, fourier_kan
from kan_kernels.pruning import prune_inputs
from kan_kernels.symbolic import fix, formula
from kan_kernels.training import fit

CONVS = {1: KANConv1d, 2: KANConv2d, 3: KANConv3d}
FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


# memory formats


@pytest.mark.parametrize("dims", FORMATS)
@pytest.mark.parametrize("swap", (False, True))
def test_memory_format(backend: str, dims: int, swap: bool) -> None:
    """A model of convolutions goes channels_last: the same numbers, images in that format, gradients."""
    kind = CONVS[dims]
    model = nn.Sequential(
        kind(3, 4, 3, padding=1, bias=True, backend=backend), kind(4, 2, 2, backend=backend)
    )
    x = torch.randn(2, 3, *(5, 6, 4)[:dims])
    want, parameters = model(x).detach(), dict(model.named_parameters())
    model(x).sum().backward()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        assert model.to(memory_format=FORMATS[dims]) is model
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert all(parameters[name] is p and p.grad is not None for name, p in model.named_parameters())
    images = x.to(memory_format=FORMATS[dims])
    got = model(images)
    torch.testing.assert_close(got, want)
    assert got.is_contiguous(memory_format=FORMATS[dims]) and model(x).is_contiguous()
    got.sum().backward()
    half = model.to(torch.bfloat16, memory_format=FORMATS[dims])
    assert half[0].spline_weight.dtype == torch.bfloat16 and half[0].grid.dtype == torch.float32


def test_memory_format_of_a_model_with_torchs_convolutions() -> None:
    """These take the format; a layer of ours beside them is not in the way."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), KANConv2d(4, 2, 3), KANConv1d(2, 2, 1))
    model.to(memory_format=torch.channels_last)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[1].spline_weight.is_contiguous() and model[2].spline_weight.is_contiguous()


def test_memory_format_of_fourier_coefficients() -> None:
    """They have four dimensions, so torch turns them round: the numbers stay."""
    layer, x = fourier_kan.NaiveFourierKANLayer(3, 4, 5), torch.randn(6, 3)
    want = layer(x)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x), want)


# where the knots are


def uniform(layer: KANLinear) -> Tensor:
    """The inner knots, which must be evenly spaced."""
    inner = layer.grid[:, layer.spline_order : -layer.spline_order]
    steps = inner.diff()
    torch.testing.assert_close(steps, steps.mean(1, keepdim=True).expand_as(steps), rtol=1e-4, atol=1e-5)
    return inner[:, [0, -1]]


def moved(layer: KANLinear) -> KANLinear:
    """By update_grid, to 10..20 in all features."""
    update_grid(layer, torch.linspace(10, 20, 101).unsqueeze(1).expand(-1, layer.in_features), margin=0.0)
    return layer


def loaded(layer: KANLinear) -> KANLinear:
    other = KANLinear(layer.in_features, layer.out_features)
    other.load_state_dict(moved(layer).state_dict())
    return other


def assigned(layer: KANLinear) -> KANLinear:
    other = KANLinear(layer.in_features, layer.out_features, device="meta")
    other.load_state_dict(moved(layer).state_dict(), assign=True)
    return other


def converted(layer: KANLinear) -> KANLinear:
    return convert.from_efficient_kan(convert.to_efficient_kan(moved(layer)))  # type: ignore[return-value]


def refined(layer: KANLinear) -> KANLinear:
    refine(moved(layer), 10)
    return layer


PLACED: dict[str, Callable[[KANLinear], KANLinear]] = {
    "update_grid": moved,
    "load_state_dict": loaded,
    "assign": assigned,
    "deepcopy": lambda layer: copy.deepcopy(moved(layer)),
    "pickle": lambda layer: pickle.loads(pickle.dumps(moved(layer))),
    "converter": converted,
    "refine": refined,
    "half": lambda layer: moved(layer).half().float(),
    "to_empty": lambda layer: moved(layer).to_empty(device="cpu"),
}


@pytest.mark.parametrize("place", PLACED.values(), ids=PLACED)
def test_the_range_of_placed_knots(place: Callable[[KANLinear], KANLinear]) -> None:
    """repr, grid_range and reset_parameters know where the knots are, whoever placed them."""
    layer = place(KANLinear(3, 2))
    if place is not PLACED["to_empty"]:  # the knots are garbage then, until the reset
        assert "grid_range=(10.0, 20.0)" in repr(layer), repr(layer)
    low, high = layer.grid_range
    assert low == pytest.approx(10.0, abs=1e-4) and high == pytest.approx(20.0, abs=1e-4)
    layer.reset_parameters()
    torch.testing.assert_close(uniform(layer), torch.tensor([10.0, 20.0]).expand(3, 2), rtol=1e-5, atol=1e-5)


def test_ranges_of_features() -> None:
    """Each feature keeps its own; a constant one, whose knots only moved, too. Pruning takes them along."""
    layer = KANLinear(3, 2)
    x = torch.rand(200, 3) * torch.tensor([1.0, 1000.0, 0.0]) + torch.tensor([0.0, 5000.0, 7.0])
    update_grid(layer, x, margin=0.0)
    before = layer.grid[:, [3, -4]].clone()
    assert re.search(r"grid_range=\(0\.\d{1,9}, 599\d\.\d+\) over all features", repr(layer)), repr(layer)
    small, _ = prune_inputs(KAN([3, 2]), x, keep=[0, 1, 2])
    small.layers[0].load_state_dict(layer.state_dict())
    small, report = prune_inputs(small, x, keep=[2, 1])
    layer.reset_parameters()
    torch.testing.assert_close(uniform(layer), before)
    small.layers[0].reset_parameters()
    torch.testing.assert_close(uniform(small.layers[0]), before[report.kept[0]])


def test_a_range_that_did_not_move_stays_exact() -> None:
    """Loading a state of its own leaves the numbers that the constructor got, and so the knots' bits."""
    layer = KANLinear(3, 2, 7, grid_range=(-0.3, 1.7))
    before = layer.grid.clone()
    layer.load_state_dict(copy.deepcopy(layer.state_dict()))
    layer.double().float()
    assert "grid_range=(-0.3, 1.7)" in repr(layer) and layer.grid_range == (-0.3, 1.7)
    layer.reset_parameters()
    assert torch.equal(layer.grid, before)


def test_repr_tells_knots_that_other_code_wrote() -> None:
    """They are seen by repr; reset_parameters goes back to where the layer's own methods placed them."""
    layer = KANLinear(3, 2)
    with torch.no_grad():
        layer.grid.mul_(5)
    assert "grid_range=(-5.0, 5.0)" in repr(layer) and layer.grid_range == (-1.0, 1.0)
    layer.reset_parameters()
    assert "grid_range=(-1.0, 1.0)" in repr(layer)
    layer.grid.fill_(float("nan"))
    assert "grid_range=(nan, nan)" in repr(layer)
    layer.grid_range = (0, 3)
    layer.reset_parameters()
    assert "grid_range=(0.0, 3.0)" in repr(layer)
    with pytest.raises(ValueError, match="grid_range: got"):
        layer.grid_range = (3.0, 0.0)
    assert "grid_range=(0.0, 3.0)" in repr(KANLinear(3, 2, grid_range=(0, 3), device="meta"))


def test_the_range_of_convolutions() -> None:
    layer = KANConv2d(3, 2, 3)
    other = KANConv2d(3, 2, 3, grid_range=(10.0, 20.0))
    layer.load_state_dict(other.state_dict())
    assert "grid_range=(10.0, 20.0)" in repr(layer)
    layer.reset_parameters()
    torch.testing.assert_close(layer.grid, other.grid)


def test_a_failed_load_keeps_the_range() -> None:
    layer = KANLinear(3, 2)
    state = moved(KANLinear(3, 2)).state_dict()
    state["surprise"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match="surprise"):
        layer.load_state_dict(state)
    assert layer.grid_range == (-1.0, 1.0)


# reset_parameters


MODELS: dict[str, Callable[[], nn.Module]] = {
    "KAN": lambda: KAN([3, 4, 2], bias=True),
    "KANConv2d": lambda: KANConv2d(3, 4, 3, bias=True),
    "efficient-kan": lambda: efficient_kan.KAN([3, 4, 2]),
    "FastKAN": lambda: fast_kan.FastKAN([3, 4, 2]),
    "FastKANLayer": lambda: fast_kan.FastKANLayer(3, 2, use_base_update=False, use_layernorm=False),
    "ChebyKAN": lambda: cheby_kan.ChebyKANLayer(3, 4, 2),
    "FourierKAN": lambda: fourier_kan.NaiveFourierKANLayer(3, 4, 2, smooth_initialization=True),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_reset_parameters(make: Callable[[], Any]) -> None:
    """The numbers of a new model from the same seed, whatever was there."""
    torch.manual_seed(3)
    model = make()
    torch.manual_seed(4)
    other = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    torch.manual_seed(4)
    model.reset_parameters()
    for (name, got), want in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("make", [MODELS[name] for name in MODELS if name != "efficient-kan"])
def test_meta_then_reset(make: Callable[[], Any]) -> None:
    """Made on meta, given memory, initialised: every parameter and buffer has its value then."""
    with torch.device("meta"):
        model = make()
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(113)
    torch.manual_seed(4)
    model.reset_parameters()
    torch.manual_seed(4)
    for (name, got), want in zip(model.state_dict().items(), make().state_dict().values(), strict=True):
        assert torch.equal(got, want), name


# integers and bools


@pytest.mark.parametrize("integer", [np.int64, np.uint8, np.int32, torch.tensor])
def test_integers_of_other_kinds(integer: Callable[[int], Any]) -> None:
    """Whatever has __index__ is taken where torch.nn takes it, and kept as a plain int."""
    n = integer
    layers = (
        KANLinear(n(3), n(4), n(6), n(2)),
        KAN([n(3), n(4), n(2)], n(6), n(2)).layers[0],
        KANConv2d(n(4), n(6), n(3), n(2), (n(1), 0), [n(1), n(2)], n(2), grid_size=n(6), spline_order=n(2)),
        efficient_kan.KAN([n(3), n(4)], n(6), n(2)).layers[0],
        fast_kan.FastKANLayer(n(3), n(4), num_grids=n(5)),
        cheby_kan.ChebyKANLayer(n(3), n(4), n(2)),
        fourier_kan.NaiveFourierKANLayer(n(3), n(4), n(2)),
    )
    for layer in layers:
        for name, value in vars(layer).items():
            for number in value if isinstance(value, (tuple, list)) else (value,):
                assert not isinstance(number, (np.generic, Tensor)), (type(layer), name, number)
    x = torch.randn(5, 3)
    layer = layers[0]
    weights = {"base_weight": layer.base_weight, "spline_order": n(2)}
    assert torch.equal(F.kan_linear(x, layer.spline_weight, layer.grid, **weights), layer(x))
    assert F.bspline_basis(x, layer.grid, n(2), n(1)).shape == (5, 3, 8)


def test_widths_of_arrays() -> None:
    """A grid search over np.arange, with widths from an array."""
    for grid_size in np.arange(2, 5):
        model = KAN(np.array([2, 5, 1]), grid_size=grid_size)
        assert model.layers[0].grid_size == grid_size and type(model.layers[0].grid_size) is int
    assert len(KAN(torch.tensor([2, 5, 1])).layers) == len(KAN(torch.Size([2, 5, 1])).layers) == 2


def test_fit_takes_integers_of_other_kinds(tmp_path: Any) -> None:
    """Its checkpoint then still is plain data."""
    n = np.int64
    x = torch.rand(32, 2)
    path = tmp_path / "fit.pt"
    options = {"steps": n(4), "batch_size": n(16), "seed": n(1), "evaluate_every": n(2), "patience": n(9)}
    history = fit(
        KAN([2, 1], 2), (x, x.sum(1, keepdim=True)), optimizer="adam", refine_at={n(2): n(4)},
        update_grid_at=[n(1)], checkpoint=path, checkpoint_every=n(2), progress=False, **options,
    )  # fmt: skip
    assert [event["step"] for event in history.events] == [1, 2]
    torch.load(path, weights_only=True)


X = torch.rand(32, 2)


@pytest.mark.parametrize("value", ["yes", 1, 0.0, None, torch.tensor(True)])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("bias", lambda v: KANLinear(3, 4, bias=v)),
        ("bias", lambda v: KAN([3, 4], bias=v)),
        ("bias", lambda v: KANConv2d(3, 4, 3, bias=v)),
        ("enable_standalone_scale_spline",
         lambda v: efficient_kan.KANLinear(3, 4, enable_standalone_scale_spline=v)),
        ("update_grid", lambda v: efficient_kan.KAN([3, 4])(torch.rand(9, 3), update_grid=v)),
        ("use_base_update", lambda v: fast_kan.FastKAN([3, 4], use_base_update=v)),
        ("use_layernorm", lambda v: fast_kan.FastKANLayer(3, 4, use_layernorm=v)),
        ("use_layernorm", lambda v: fast_kan.FastKANLayer(3, 4)(torch.rand(9, 3), v)),
        ("addbias", lambda v: fourier_kan.NaiveFourierKANLayer(3, 4, addbias=v)),
        ("smooth_initialization", lambda v: fourier_kan.NaiveFourierKANLayer(3, 4, smooth_initialization=v)),
        ("keep_means", lambda v: prune_inputs(KAN([2, 1]), X, keep_means=v)),
        ("simplify", lambda v: formula(KAN([2, 1]), simplify=v)),
    ],
)  # fmt: skip
def test_bools_are_bools(name: str, call: Callable[[Any], Any], value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{name}: got .*, expected True or False$"):
        call(value)


def test_bools_of_numpy() -> None:
    assert KANLinear(3, 4, bias=np.bool_(True)).bias is not None
    for wrong in (True, np.bool_(True), torch.tensor(True), 3.0, np.float64(3.0), "3"):
        with pytest.raises(TypeError, match=r"grid_size: got .*, expected an int"):
            KANLinear(3, 4, wrong)  # type: ignore[arg-type]


# tensors that are not dense


def nested_parts() -> list[Tensor]:
    return [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 0, 1)]


@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_nested_inputs(backend: str, layout: torch.layout) -> None:
    """As nn.Linear: nested in, nested out of the same structure, with gradients."""
    layer = KANLinear(3, 2, bias=True, backend=backend, dtype=torch.float64)
    with_formula = KANLinear(3, 2, backend=backend, dtype=torch.float64)
    fix(with_formula, 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    parts = nested_parts()
    for module in (layer, with_formula, KAN([3, 4, 2], backend=backend, dtype=torch.float64)):
        for warm in (False, True):  # before and after a dense call, whose checks are remembered
            x = torch.nested.nested_tensor(parts, layout=layout, requires_grad=True)
            y = module(x)
            assert y.is_nested and y.layout == layout
            for got, part in zip(y.unbind(), parts, strict=True):
                torch.testing.assert_close(got, module(part))
            if not warm:
                module(torch.cat(parts))
        torch.cat([part.square().flatten() for part in y.unbind()]).sum().backward()
        dense = torch.cat(parts).requires_grad_()
        module(dense).square().sum().backward()
        assert x.grad is not None and dense.grad is not None
        torch.testing.assert_close(torch.cat(list(x.grad.unbind())), dense.grad)


def test_a_residual_of_nested_inputs() -> None:
    """The result has the very structure of x, so that both can be added."""
    layer, parts = KANLinear(3, 3, dtype=torch.float64), nested_parts()
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    for got, part in zip((x + layer(x)).unbind(), parts, strict=True):
        torch.testing.assert_close(got, part + layer(part))


def test_nested_inputs_of_basis_linear() -> None:
    weight, parts = torch.randn(3, 4, 2, dtype=torch.float64), nested_parts()
    x = torch.nested.nested_tensor(parts, layout=torch.jagged)
    y = F.basis_linear(x, weight, basis="chebyshev")
    for got, part in zip(y.unbind(), parts, strict=True):
        torch.testing.assert_close(got, F.basis_linear(part, weight, basis="chebyshev"))


def test_features_that_are_ragged() -> None:
    """Parts (2, n): their last dimension is no feature, whatever their number of entries."""
    x = torch.nested.nested_tensor([torch.randn(1, 2), torch.randn(1, 1)], layout=torch.jagged)
    x = torch.nested.nested_tensor_from_jagged(x.values().reshape(1, -1), x.offsets(), jagged_dim=2)
    with pytest.raises(TypeError, match=r"x: got a nested tensor of shape .*, expected parts of one size"):
        KANLinear(3, 2)(x)


SPARSE: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "mkldnn": lambda x: x.to_mkldnn(),
}


@pytest.mark.parametrize("kind", SPARSE)
def test_sparse_inputs(backend: str, kind: str) -> None:
    """Refused in one sentence, before and after a dense call of the same shapes."""
    layer, x = KANLinear(4, 2, backend=backend), torch.randn(6, 4)
    image, convolve = torch.randn(1, 2, 4, 4), KANConv2d(2, 2, 3, backend=backend)
    weight = torch.randn(4, 3, 2)
    message = r"^x: got torch\.\w+, expected a dense tensor; pass x\.to_dense\(\)$"
    for _ in range(2):
        for call, dense in (
            (layer, x),
            (lambda x: F.basis_linear(x, weight, basis="chebyshev", backend=backend), x),
            (cheby_kan.ChebyKANLayer(4, 2, 2, backend=backend), x),
            (fast_kan.FastKANLayer(4, 2, backend=backend), x),
            (convolve, image),
        ):
            if dense.dim() == 2 or kind in ("coo", "mkldnn"):
                with pytest.raises(TypeError, match=message):
                    call(SPARSE[kind](dense))
            call(dense)


def test_sparse_weights_and_grids() -> None:
    """Named too."""
    layer, x = KANLinear(4, 2, base=None), torch.randn(6, 4)
    weight = layer.spline_weight.detach()
    with pytest.raises(TypeError, match=r"spline_weight: got torch\.sparse_coo"):
        F.kan_linear(x, weight.to_sparse(), layer.grid, spline_order=3, base=None)
    with pytest.raises(TypeError, match=r"grid: got torch\.sparse_csr"):
        F.kan_linear(x, weight, layer.grid.to_sparse_csr(), spline_order=3, base=None)
    with pytest.raises(TypeError, match="x: got a nested tensor, expected a dense one"):
        conv.kan_conv(
            torch.nested.nested_tensor([torch.randn(2, 4, 4)], layout=torch.jagged),
            torch.randn(2, 8, 3, 3, 2), layer.grid[:2], spline_order=3, base=None,
        )  # fmt: skip


# and the rest of the first week


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_copies_and_files(make: Callable[[], Any]) -> None:
    """deepcopy, pickle, torch.save, share_memory and meta."""
    model = make()
    x = torch.randn(2, 3, 5, 5) if isinstance(model, KANConv2d) else torch.randn(6, 3)
    want = model(x)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    other = make()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other, model.share_memory()):
        assert torch.equal(twin(x), want)
    assert all(t.is_shared() for t in (*model.parameters(), *model.buffers()))
    assert model.to("meta")(x.to("meta")).shape == want.shape
