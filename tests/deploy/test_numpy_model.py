"""to_numpy_model: a trained KAN on NumPy arrays, without torch."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness import child
from kan_kernels import (
    KAN,
    KANActivation,
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANFeedForward,
    KANLinear,
    MultiHeadKANLinear,
    NumpyKAN,
    deploy,
    to_numpy_model,
)
from kan_kernels.integrations import cheby_kan, convert, efficient_kan, fast_kan
from kan_kernels.nn import LazyKANLinear

OPTIONS: list[dict[str, Any]] = [
    {}, {"bias": True, "base": None}, {"base": "identity", "grid_size": 9, "spline_order": 5}, {"dtype":
    torch.float64},
    {"dtype": torch.float64, "spline_order": 0, "bias": True}, {"dtype": torch.bfloat16}, {"dtype":
    torch.float16, "bias": True},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("widths", ([2, 5, 1], [3, 17, 33, 4]), ids=str)
def test_agrees_with_torch(widths: list[int], options: dict[str, Any]) -> None:
    """The same numbers as the torch model computes in the same dtype; 16-bit weights are computed in
    float32.
    """
    net = KAN(widths, **options)
    model = to_numpy_model(net)
    wide = torch.float64 if options.get("dtype") == torch.float64 else torch.float32
    for n in (0, 1, 7, 300):
        x = torch.randn(n, widths[0]).to(wide)
        got = model(x.numpy())
        want = net.to(wide)(x).detach().numpy()
        assert got.dtype == want.dtype and got.shape == want.shape
        eps = float(torch.finfo(wide).eps)
        np.testing.assert_allclose(got, want, rtol=32 * eps, atol=32 * eps)


def test_input_forms() -> None:
    """Lists, other dtypes, Fortran order and strided views are taken as NumPy would."""
    net = KAN([3, 4])
    model = to_numpy_model(net)
    x = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    want = net(torch.from_numpy(x)).detach().numpy()
    big = np.full((20, 6), np.nan, np.float32)
    big[::2, ::2] = x
    for form in (x, x.tolist(), np.asfortranarray(x), x.astype(np.float64), big[::2, ::2], x[::-1][::-1]):
        np.testing.assert_allclose(model(form), want, rtol=1e-5, atol=1e-6)
    assert np.isnan(model([[np.nan, 0.0, 0.0]])).all()
    np.testing.assert_array_equal(model(x.astype(object)), model(x))
    for form in (np.ma.array(x, mask=x > 0), x.astype(str), x + 1j, x.astype(str).astype(object)):
        with pytest.raises(TypeError, match=r"x: got \w+ of .*, expected an array of real numbers"):
            model(form)


def test_is_a_copy() -> None:
    """Training on does not change a model that was taken; a single layer is taken too."""
    layer = KANLinear(2, 3, bias=True)
    model = to_numpy_model(layer)
    before = model([[0.1, 0.2]])
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(1.0)
    np.testing.assert_array_equal(model([[0.1, 0.2]]), before)
    assert not np.allclose(to_numpy_model(layer)([[0.1, 0.2]]), before)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_save_and_load(tmp_path: Path, options: dict[str, Any]) -> None:
    """save / load and pickle give the same bits; a foreign file is refused."""
    model = to_numpy_model(KAN([2, 5, 1], **options))
    x = np.random.default_rng(1).normal(size=(50, 2))
    path = tmp_path / "model.npz"
    model.save(path)
    for other in (NumpyKAN.load(path), NumpyKAN.load(str(path)), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other(x), model(x))
        assert (other.dtype, other.in_features, other.out_features) == (model.dtype, 2, 1)
    np.savez(tmp_path / "foreign.npz", a=1)
    with pytest.raises(ValueError, match="foreign"):
        NumpyKAN.load(tmp_path / "foreign.npz")


def test_runs_without_torch(tmp_path: Path) -> None:
    """In a process where torch cannot be imported, a saved model loads and gives the same numbers."""
    model = to_numpy_model(KAN([2, 5, 1], bias=True))
    model.save(tmp_path / "model.npz")
    np.save(tmp_path / "want.npy", model([[0.3, -0.7], [5.0, 0.1]]))
    child(f"""
import sys, importlib.abc
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("torch is hidden", name="torch")
sys.meta_path.insert(0, Blocked())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "torch" else found(name, package)
import numpy as np
from kan_kernels import NumpyKAN
model = NumpyKAN.load({str(tmp_path / "model.npz")!r})
np.testing.assert_array_equal(model([[0.3, -0.7], [5.0, 0.1]]), np.load({str(tmp_path / "want.npy")!r}))
assert "torch" not in sys.modules
""")


@pytest.mark.parametrize("kind", ("npy", "text", "empty", "npz"))
def test_foreign_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    if kind == "npz":
        np.savez(path, a=np.zeros(3))
    else:
        np.save(tmp_path / "a.npy", np.zeros(3))
        path.write_bytes({"npy": (tmp_path / "a.npy").read_bytes(), "text": b"text\n", "empty": b""}[kind])
    with pytest.raises(ValueError, match=r"path: .* is not a file that NumpyKAN.save wrote"):
        NumpyKAN.load(path)


def holding(layer: torch.nn.Module) -> KAN:
    net = KAN([2, 3])
    net.layers[0] = layer
    return net


OTHERS: dict[str, Callable[[], object]] = {
    "KANConv1d": lambda: KANConv1d(2, 3, 3),
    "KANConv2d": lambda: KANConv2d(2, 3, 3),
    "KANConv3d": lambda: KANConv3d(2, 3, 3),
    "MultiHeadKANLinear": lambda: MultiHeadKANLinear(2, 3),
    "KANActivation": lambda: KANActivation(2),
    "KANFeedForward": lambda: KANFeedForward(6, 8, 2),
    "efficient_kan.KAN": lambda: efficient_kan.KAN([2, 3, 1]),
    "efficient_kan.KANLinear": lambda: efficient_kan.KANLinear(2, 3),
    "FastKAN": lambda: fast_kan.FastKAN([2, 3]),
    "ChebyKANLayer": lambda: cheby_kan.ChebyKANLayer(2, 3, 4),
    "Sequential": lambda: torch.nn.Sequential(KANLinear(2, 3)),
    "KANConv2d in a KAN": lambda: holding(KANConv2d(2, 3, 3)),
    "type": lambda: KANLinear,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_layers_are_refused(name: str) -> None:
    """Whatever is no KAN of KANLinear is named, by the NumPy model and the C header alike."""
    model, kind = OTHERS[name](), name.partition(" ")[0].rpartition(".")[2]
    for argument, write in (("kan", to_numpy_model), ("model", deploy.to_c)):
        with pytest.raises(TypeError, match=rf"^{argument}: .*\b{kind}, expected a KAN or a KANLinear \("):
            write(model)


def test_what_the_refusal_names_works() -> None:
    """A converted efficient-kan model has a NumPy twin; so has a lazy layer, once it has met an x."""
    theirs, x = efficient_kan.KAN([2, 3, 1]), torch.rand(20, 2)
    got = to_numpy_model(convert.from_efficient_kan(theirs))(x.numpy())
    np.testing.assert_allclose(got, theirs(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    layer = LazyKANLinear(3)
    for write in (to_numpy_model, deploy.to_c):
        with pytest.raises(ValueError, match="layer 0 has met no x yet"):
            write(layer)
    want = layer(x).detach().numpy()
    np.testing.assert_allclose(to_numpy_model(layer)(x.numpy()), want, rtol=1e-5, atol=1e-6)


def test_compiled_models_are_taken() -> None:
    """Those that torch.compile wrapped are the models inside, with their products."""
    net = KAN([2, (1, 1), 1])
    compiled, x = torch.compile(net), np.zeros((3, 2), np.float32)
    np.testing.assert_array_equal(to_numpy_model(compiled)(x), to_numpy_model(net)(x))
    assert deploy.to_c(compiled) == deploy.to_c(net)


def test_latency() -> None:
    """A [2, 5, 1] KAN at n = 1 takes under 20 us on a quiet machine; 40 us are allowed where others
    share it.
    """
    model = to_numpy_model(KAN([2, 5, 1]))
    x = np.zeros((1, 2), np.float32)
    best = min(time_calls(model, x) for _ in range(20))
    assert best < 40e-6, f"{best * 1e6:.1f} us a call"


def time_calls(model: NumpyKAN, x: np.ndarray, count: int = 200) -> float:  # type: ignore[type-arg]
    start = time.perf_counter()
    for _ in range(count):
        model(x)
    return (time.perf_counter() - start) / count


def test_concurrent_calls() -> None:
    """Threads may call one model at once: the kernels release the GIL and share no scratch."""
    from concurrent.futures import ThreadPoolExecutor

    model = to_numpy_model(KAN([4, 40, 40, 3]))
    x = np.random.default_rng(2).normal(size=(400, 4)).astype(np.float32)
    want = model(x)
    with ThreadPoolExecutor(8) as pool:
        for got in pool.map(model, [x] * 64):
            np.testing.assert_array_equal(got, want)


def test_fma_peak() -> None:
    """A plausible rate, and arguments named where they are wrong."""
    from kan_kernels import _C

    assert 0.1 < _C.fma_peak(seconds=0.02) < 1e4
    with pytest.raises(ValueError, match="threads must be positive, got 0"):
        _C.fma_peak(0)
    with pytest.raises(ValueError, match="seconds must be in"):
        _C.fma_peak(1, -1.0)
