"""What users of torch.nn do with any module in their first week."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kan_kernels import (
    KAN,
    KANActivation,
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANFeedForward,
    KANLinear,
    MultiHeadKANLinear,
)
from kan_kernels import functional as F
from kan_kernels.functional import conv
from kan_kernels.integrations import cheby_kan, efficient_kan, fast_kan, fourier_kan
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


# reset_parameters


MODELS: dict[str, Callable[[], nn.Module]] = {
    "KAN": lambda: KAN([3, 4, 2], bias=True),
    "KANConv2d": lambda: KANConv2d(3, 4, 3, bias=True),
    "KANActivation": lambda: KANActivation(3, heads=2, share=3),
    "MultiHeadKANLinear": lambda: MultiHeadKANLinear(3, 4, heads=2, bias=True),
    "KANFeedForward": lambda: KANFeedForward(3, 6, heads=3),
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


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind.startswith(("KAN", "Multi"))])
def test_reset_with_a_generator(kind: str) -> None:
    """Ours take the random numbers from it, and leave torch's own where they are."""
    model, before = MODELS[kind](), torch.get_rng_state()
    found = []
    for seed in (4, 4, 5):
        model.reset_parameters(torch.Generator().manual_seed(seed))
        found.append([p.detach().clone() for p in model.parameters()])
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, *found[:2])) and not all(map(torch.equal, *found[1:]))


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
