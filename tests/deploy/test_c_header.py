"""KANs and formulas as C99: compiled with every warning an error, and compared with the model."""

from __future__ import annotations

import math
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from c_programs import needs_cc, run
from kan_kernels import KAN, KANLinear, deploy, symbolic
from kan_kernels.grids import update_grid


def points(model: Any, dtype: type) -> Any:
    """Inside, on knots, in the extension, far outside, NaN and infinities."""
    grid = (model.layers[0] if hasattr(model, "layers") else model).grid.double().numpy()
    random = np.random.default_rng(3)
    width = grid.shape[0]
    special = [grid.T, np.full((1, width), 40.0), np.full((1, width), -1e3)]
    for value in (np.nan, np.inf, -np.inf):
        special.append(np.where(np.arange(width) == 0, value, random.normal(size=(1, width))))
    return np.concatenate((random.normal(size=(200, width)), *special)).astype(dtype)


def sample(**options: Any) -> KAN:
    torch.manual_seed(0)
    model = KAN([2, 5, 3], **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    # other knots for each feature
    update_grid(model, torch.randn(300, 2, dtype=model.layers[0].spline_weight.dtype))
    return model


@needs_cc
@pytest.mark.parametrize(
    "options",
    [
        {"dtype": torch.float64},
        {"bias": True},
        {"base": None, "spline_order": 0, "dtype": torch.float64},
        {"base": "identity", "spline_order": 1, "grid_size": 1},
        {"spline_order": 8, "grid_size": 9, "dtype": torch.float64, "bias": True},
    ],
    ids=str,
)
def test_agrees_with_the_model(options: dict[str, Any], tmp_path: Path) -> None:
    """The same numbers, NaN at the same places, in the dtype of the model."""
    model = sample(**options)
    dtype = np.float64 if options.get("dtype") == torch.float64 else np.float32
    x = points(model, dtype)
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    got = run(tmp_path, deploy.to_c(model), x, 3)
    # rounding of sums of coefficients, which the slopes of the second layer pass on
    sizes = [float(layer.spline_weight.detach().abs().max()) for layer in model.layers]
    tolerance = 500 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * max(1.0, sizes[0] * sizes[1]))


@needs_cc
def test_one_layer_masked_edges_and_knots_that_coincide(tmp_path: Path) -> None:
    layer = KANLinear(3, 2, 6, 2, dtype=torch.float64)
    layer.set_edge_mask(torch.tensor([[1, 0], [0, 0], [1, 1]]))
    with torch.no_grad():
        layer.grid[1, 4:6] = layer.grid[1, 4]
    x = points(layer, np.float64)
    with torch.no_grad():
        want = layer(torch.from_numpy(x)).numpy()
    got = run(tmp_path, deploy.to_c(layer), x, 2)
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


@needs_cc
@pytest.mark.parametrize("base,order", [("silu", 3), (None, 2), ("identity", 1)])
def test_tables_keep_their_bound(base: str | None, order: int, tmp_path: Path) -> None:
    """The stated error holds, is not idle, and falls as the square of the number of pieces."""
    model = sample(base=base, spline_order=order, dtype=torch.float64)
    x = np.concatenate((points(model, np.float64), np.random.default_rng(1).normal(size=(20000, 2))))
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    finite = np.isfinite(x).all(1)
    bounds = []
    for pieces in (4, 64):
        header = deploy.to_c(model, table=pieces)
        (said,) = re.findall(r"#define KAN_TABLE_ERROR (\S+)", header)
        got = run(tmp_path, header, x, 3)
        assert (np.isnan(got) == np.isnan(want)).all()
        error = np.abs(got - want)[finite].max()
        bounds.append(float(said))
        assert error <= float(said) + 1e-12
        if order > 1:
            assert error > float(said) / 1000
    if order > 1:
        assert 200 < bounds[0] / bounds[1] < 300
    else:  # straight already
        assert bounds[0] == bounds[1] < 1e-200


@needs_cc
def test_float32_tables(tmp_path: Path) -> None:
    model = sample()
    header = deploy.to_c(model, table=32)
    x = points(model, np.float32)[:200]
    (said,) = re.findall(r"#define KAN_TABLE_ERROR (\S+)", header)
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    assert np.abs(run(tmp_path, header, x, 3) - want).max() <= float(said) + 1e-5


def formulas() -> KAN:
    model = KAN([2, 2, 2], dtype=torch.float64, bias=True)
    names = iter(["sin", "x^2", "exp", "abs", "tanh", "gaussian", "arctan", "x"])
    for layer in model.layers:
        for i in range(2):
            for o in range(2):
                symbolic.fix(layer, i, o, next(names), params=(0.7, 0.2 * i, 1.5, 0.1 * o))
    return model


@needs_cc
def test_formula(tmp_path: Path) -> None:
    """Two outputs through a pointer; one is returned."""
    pytest.importorskip("sympy")
    model = formulas()
    x = np.random.default_rng(2).normal(size=(100, 2))
    with torch.no_grad():
        want = model(torch.from_numpy(x)).numpy()
    got = run(tmp_path, symbolic.to_c(model, ["y", "b"]), x, 2, "kan(x[0], x[1], y)")
    np.testing.assert_allclose(got, want, rtol=1e-12)
    big = KANLinear(2, 1, dtype=torch.float64)
    symbolic.fix(big, 0, 0, "arcsin", params=(0.1, 0.0, 1e20, 3e12))
    big.set_edge_mask(torch.tensor([[0], [0]]))  # the second input is not used
    with torch.no_grad():
        want = big(torch.from_numpy(x)).numpy()
    got = run(tmp_path, symbolic.to_c(big, function="one"), x, 1, "y[0] = one(x[0], x[1])")
    np.testing.assert_allclose(got, want, rtol=1e-12)


@needs_cc
def test_formula_of_awkward_names(tmp_path: Path) -> None:
    """What sympy would rename is as it was given, NaN stays NaN, and what math.h has is refused."""
    pytest.importorskip("sympy")
    model = KANLinear(2, 1, dtype=torch.float64)
    symbolic.fix(model, 0, 0, "sgn", params=(1.0, 0.0, 1.0, 0.0))
    symbolic.fix(model, 1, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    x = np.array([[math.nan, 1.0], [-2.0, 1.0], [0.0, 1.0], [3.0, math.nan]])
    header = symbolic.to_c(model, ["entry", "exp"], function="law")
    want = model(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(run(tmp_path, header, x, 1, "y[0] = law(x[0], x[1])"), want, rtol=1e-12)
    assert "double M_1, double FP_2" in symbolic.to_c(model, ["M_1", "FP_2"])
    for name in ("M_PI", "M_E", "NAN", "HUGE_VAL"):
        with pytest.raises(ValueError, match=f"names: got '{name}'"):
            symbolic.to_c(model, [name, "x"])
    for name in ("cos", "y0", "float_t", "lgamma_r", "sincosl"):
        with pytest.raises(ValueError, match=f"function: got '{name}'"):
            symbolic.to_c(model, function=name)


def test_formula_in_python_alone(tmp_path: Path) -> None:
    """The file runs in a Python that is told to find no packages."""
    import sys

    pytest.importorskip("sympy")
    model = formulas()
    deploy.write(tmp_path / "formula.py", symbolic.to_python(model))
    code = "import formula; print(*map(repr, formula.kan(0.3, -0.8)))"
    command = [sys.executable, "-S", "-s", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    with torch.no_grad():
        want = model(torch.tensor([[0.3, -0.8]], dtype=torch.float64))[0].tolist()
    np.testing.assert_allclose([float(t) for t in done.stdout.split()], want, rtol=1e-12)


def huge() -> KANLinear:
    """A layer whose weights float32 holds, and whose values it does not."""
    layer = KANLinear(1, 1, grid_range=(-100.0, 100.0))
    assert layer.base_weight is not None
    with torch.no_grad():
        layer.base_weight.fill_(3e38)
    return layer


@pytest.mark.parametrize(
    "options,error,match",
    [
        ({"model": torch.nn.Linear(2, 3)}, TypeError, "model: got Linear"),
        ({"name": "int"}, ValueError, "name: got 'int', expected an identifier of C"),
        ({"name": "a-b"}, ValueError, "name: got 'a-b'"),
        ({"name": "expf"}, ValueError, "name: got 'expf', expected .* that math.h does not have"),
        ({"model": huge(), "table": 4}, ValueError, "table: layer 0 has values beyond the largest float"),
        ({"name": 3}, TypeError, "name: got 3"),
        ({"dtype": "float16"}, ValueError, "dtype: got 'float16'"),
        ({"table": 0}, ValueError, "table: got 0"),
        ({"table": True}, TypeError, "table: got True"),
        ({"model": KANLinear(1, 1, 3, 0), "table": 4}, ValueError, "table: layer 0 has spline_order 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        deploy.to_c(**{"model": KANLinear(1, 1), **options})


def test_bad_models() -> None:
    """Weights that no number stands for, and edges that are no splines."""
    layer = KANLinear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.spline_weight[0, 2, 0] = 1e300
    with pytest.raises(ValueError, match="the spline of layer 0 is not finite in float32"):
        deploy.to_c(layer, dtype="float32")
    assert "1e+300" in deploy.to_c(layer)
    symbolic.fix(layer, 0, 0, "sin", params=(1, 0, 1, 0))
    with pytest.raises(ValueError, match=r"layer 0 has symbolic edges.*symbolic\.to_c"):
        deploy.to_c(layer)
    for names, match in ((["pow"], "the source calls 'pow'"), (["for"], "got 'for'"), (["kan"], "is both")):
        square = KANLinear(1, 1)
        symbolic.fix(square, 0, 0, "x^2", params=(1, 0, 1, 0))
        with pytest.raises(ValueError, match=match):
            symbolic.to_c(square, names)


def test_files_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was there stays where the new file cannot be written, and nothing else is left behind."""
    model = deploy.to_numpy_model(KAN([2, 1]))
    model.save(tmp_path / "model.npz")
    before = (tmp_path / "model.npz").read_bytes()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        model.save(tmp_path / "nowhere" / "model.npz")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        deploy.write(tmp_path / "nowhere" / "kan.h", "")

    def full(file: Any, **arrays: Any) -> None:
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path / "model.npz")
    assert (tmp_path / "model.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.npz"]
    assert struct.calcsize("d") == 8  # of the programs above
