"""formula, latex, to_python, to_function: the same function as the model, in every form."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

from harness import child
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels.nn import function_library as library

sympy = pytest.importorskip("sympy")


def fixed(widths: list[int], names: list[str], **options: Any) -> KAN:
    """A KAN whose edges all have a formula, from `names` in turn, with parameters inside every domain."""
    net = KAN(widths, dtype=torch.float64, bias=True, **options)
    n = 0
    for layer in net.layers:
        with torch.no_grad():
            layer.bias.copy_(0.1 * torch.randn_like(layer.bias))
        for i in range(layer.in_features):
            for o in range(layer.out_features):
                a, b, c, d = (0.3 + 0.1 * torch.rand(4)).tolist()
                symbolic.fix(layer, i, o, names[n % len(names)], params=(a / 2, b + 0.2, 0.3 * c, d))
                n += 1
    return net


def paper() -> KAN:
    """exp(sin(pi x) + y^2), with shifts and scales that cancel."""
    net = KAN([2, 1, 1], dtype=torch.float64)
    symbolic.fix(net.layers[0], 0, 0, "sin", params=(torch.pi, 0.0, 0.5, 0.3))
    symbolic.fix(net.layers[0], 1, 0, "x^2", params=(-2.0, 0.0, 0.125, 0.2))
    symbolic.fix(net.layers[1], 0, 0, "exp", params=(2.0, -1.0, 1.0, 0.0))
    return net


@pytest.mark.parametrize("name", symbolic.names())
def test_every_function(name: str) -> None:
    """Torch, sympy, Python with math, Python with NumPy and the callable agree on every function."""
    net = fixed([2, 1], [name])
    x = torch.rand(20, 2, dtype=torch.float64)
    want = net(x)[:, 0].detach().numpy()
    (expression,) = symbolic.formula(net, ["u", "v"])
    scope: dict[str, Any] = {}
    exec(symbolic.to_python(net, ["u", "v"]), scope)
    exec(symbolic.to_python(net, ["u", "v"], function="vectors", module="numpy"), scope)
    for row, value in zip(x.tolist(), want, strict=True):
        assert float(expression.subs(dict(zip(("u", "v"), row, strict=True)))) == pytest.approx(
            value, rel=1e-14
        )
        assert scope["kan"](*row) == pytest.approx(value, rel=1e-13)
    columns = x.numpy().T
    np.testing.assert_allclose(np.broadcast_to(scope["vectors"](*columns), 20), want, rtol=1e-13)
    np.testing.assert_allclose(np.broadcast_to(symbolic.to_function(net)(*columns)[0], 20), want, rtol=1e-13)


def test_deep_model_with_several_outputs() -> None:
    """Layers are composed, biases included; shared parts are written once."""
    net = fixed([3, 4, 2], ["sin", "exp", "x^2", "tanh", "arctan", "x"])
    x = torch.rand(30, 3, dtype=torch.float64)
    want = net(x).detach().numpy()
    function = symbolic.to_function(net)
    np.testing.assert_allclose(np.stack(function(*x.numpy().T), -1), want, rtol=1e-12)
    source = symbolic.to_python(net, ["a", "b", "t0"])
    scope: dict[str, Any] = {}
    exec(source, scope)
    np.testing.assert_allclose([scope["kan"](*row) for row in x.tolist()], want, rtol=1e-12)
    assert source.count("math.sin") + source.count("math.exp") < 2 * 12, source


def test_python_source_needs_no_torch(tmp_path: Any) -> None:
    """It runs in an interpreter that has neither torch nor this package."""
    want = paper()(torch.tensor([0.3, -0.7], dtype=torch.float64)).item()
    path = tmp_path / "model.py"
    path.write_text(symbolic.to_python(paper(), ["x", "y"]) + "\nprint(kan(0.3, -0.7))\n")
    text = subprocess.run(
        [sys.executable, "-I", "-S", str(path)], capture_output=True, text=True, check=True
    ).stdout
    assert float(text) == pytest.approx(want, rel=1e-14)


def test_constants_are_collected() -> None:
    """Scales and shifts of one layer disappear into the next; whole numbers are integers."""
    x, y = sympy.symbols("x y")
    (got,) = symbolic.formula(paper(), ["x", "y"], digits=4)
    assert got == sympy.exp(sympy.sin(sympy.Float("3.1416") * x) + y**2)
    assert symbolic.latex(paper(), ["x", "y"]) == [r"e^{y^{2} + \sin{\left(3.1416 x \right)}}"]
    assert str(symbolic.formula(paper(), ["x", "y"], digits=0)[0]) == "exp(y**2 + sin(3*x))"


def test_rounding() -> None:
    """Decimals as Python's round; what becomes zero disappears; without digits every bit is there."""
    layer = KANLinear(2, 1, dtype=torch.float64)
    symbolic.fix(layer, 0, 0, "sin", params=(1.0, 1e-9, 0.123456789, 0.0))
    symbolic.fix(layer, 1, 0, "x", params=(1.0, 0.0, 1e-7, 1 / 3))
    assert str(symbolic.formula(layer, ["u", "v"], digits=3)[0]) == "0.123*sin(u) + 0.333"
    (exact,) = symbolic.formula(layer, ["u", "v"])
    assert float(exact.subs({"u": 0, "v": 0})) == pytest.approx(1 / 3 + 0.123456789 * 1e-9, rel=1e-15)


def test_simplify() -> None:
    """sin(x)^2 + cos(x)^2 is 1 where simplifying is asked for, and only there."""
    net = KAN([1, 2, 1], dtype=torch.float64)
    for node, name in enumerate(("sin", "cos")):
        symbolic.fix(net.layers[0], 0, node, name, params=(1.0, 0.0, 1.0, 0.0))
        symbolic.fix(net.layers[1], node, 0, "x^2", params=(1.0, 0.0, 1.0, 0.0))
    plain, simple = (symbolic.formula(net, ["x"], digits=6, simplify=flag)[0] for flag in (False, True))
    x = sympy.Symbol("x")
    assert simple == 1 and plain == sympy.sin(x) ** 2 + sympy.cos(x) ** 2


def decimals(expression: Any) -> int:
    """The most decimals of a number in it."""
    return max((len(str(float(n)).partition(".")[2]) for n in expression.atoms(sympy.Float)), default=0)


def test_rounding_comes_after_simplifying() -> None:
    """Products that sympy multiplies out are rounded too, and are those of the numbers before rounding."""
    net = KAN([2, 2, 1], dtype=torch.float64)  # ((p x + q y)^2 - (r x - s y)^2) / 4
    for node, (first, second) in enumerate(((1.00003, 0.99998), (0.99997, -1.00001))):
        symbolic.fix(net.layers[0], 0, node, "x", params=(1.0, 0.0, 100 * first, 0.0))
        symbolic.fix(net.layers[0], 1, node, "x", params=(1.0, 0.0, 100 * second, 0.0))
        symbolic.fix(net.layers[1], node, 0, "x^2", params=(1.0, 0.0, 0.25e-4 * (-1) ** node, 0.0))
    x, y = sympy.symbols("x y")
    (got,) = symbolic.formula(net, ["x", "y"], digits=4, simplify=True)
    assert decimals(got) <= 4
    for point in ({x: 1.0, y: 0.7}, {x: -2.0, y: 1.0}):
        values = torch.tensor([[point[x], point[y]]], dtype=torch.float64)
        assert float(got.subs(point)) == pytest.approx(net(values).item(), abs=5e-4), got


def test_simplify_sees_through_rounding_noise() -> None:
    """Constants that are whole but for the last digits of a polish are whole to sympy."""
    net = KAN([1, 2, 1], dtype=torch.float64)
    for node, name in enumerate(("sin", "cos")):
        symbolic.fix(net.layers[0], 0, node, name, params=(1.0, 0.0, 1 + 4e-16 * node, 0.0))
        symbolic.fix(net.layers[1], node, 0, "x^2", params=(1.0, 0.0, 1 - 3e-16 * node, 0.0))
    assert symbolic.formula(net, ["x"], digits=6, simplify=True) == [1]


def test_masked_edges_are_absent() -> None:
    """An edge that is off and has no formula takes no part; an input without edges is no symbol."""
    net = paper()
    symbolic.unfix(net.layers[0], 1, 0)
    net.layers[0].set_edge_mask(torch.tensor([[0], [0]]))
    (got,) = symbolic.formula(net, ["x", "y"], digits=3)
    assert {symbol.name for symbol in got.free_symbols} == {"x"}
    x = torch.rand(5, 2, dtype=torch.float64)
    np.testing.assert_allclose(symbolic.to_function(net)(*x.numpy().T)[0], net(x)[:, 0].detach(), rtol=1e-13)


def test_names_are_never_evaluated() -> None:
    """Any text is a symbol's name; only to_python asks for identifiers."""
    names = ["__import__('os').abort()", r"\alpha"]
    (got,) = symbolic.formula(paper(), names)
    assert {symbol.name for symbol in got.free_symbols} == set(names)
    assert r"\alpha" in symbolic.latex(paper(), names)[0]
    for bad in (names, ["lambda", "y"], ["math", "y"], ["x y", "z"]):
        with pytest.raises(ValueError, match="cannot be a name in Python"):
            symbolic.to_python(paper(), bad)


def test_unprintable_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered function that the module does not have is refused, not written as a comment."""
    monkeypatch.setattr(library, "_library", dict(library._library))
    symbolic.register("bessel", torch.special.i0, lambda z: sympy.besseli(0, z))
    layer = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(layer, 0, 0, "bessel", params=(1.0, 0.0, 1.0, 0.0))
    assert "besseli" in str(symbolic.formula(layer)[0])
    for module in ("math", "numpy"):
        with pytest.raises(ValueError, match=f"a function that the module {module} does not have"):
            symbolic.to_python(layer, module=module)
    symbolic.register("erf", torch.erf, sympy.erf)  # of math alone
    symbolic.fix(layer, 0, 0, "erf", params=(1.0, 0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="that the module numpy does not have, but math"):
        symbolic.to_python(layer, module="numpy")
    exec(symbolic.to_python(layer), made := {})
    assert made["kan"](0.5) == math.erf(0.5)


def test_the_larger_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registered functions with Max and Min, by the one module that the source imports."""
    monkeypatch.setattr(library, "_library", dict(library._library))
    symbolic.register("bounded", lambda z: z.clamp(-1, 1), lambda z: sympy.Max(-1, sympy.Min(z, 1)))
    layer = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(layer, 0, 0, "bounded", params=(1.0, 0.0, 1.0, 0.0))
    x = np.array([-2.0, 0.25, 3.0])
    exec(symbolic.to_python(layer, module="numpy"), made := {})
    assert made["kan"](x).tolist() == [-1.0, 0.25, 1.0]
    exec(symbolic.to_python(layer), made)
    assert [made["kan"](value) for value in x.tolist()] == [-1.0, 0.25, 1.0]


def test_outside_of_the_domain() -> None:
    """NaN stays NaN, and what has no real value is none: an error of math, NaN in NumPy."""
    for name, x in (("x^1.5", -1.0), ("sqrt", -1.0), ("sgn", math.nan)):
        net, scope = KANLinear(1, 1, dtype=torch.float64), {}
        symbolic.fix(net, 0, 0, name, params=(1.0, 0.0, 1.0, 0.0))
        assert net(torch.tensor([[x]], dtype=torch.float64)).isnan()
        exec(symbolic.to_python(net), scope)
        exec(symbolic.to_python(net, function="vectors", module="numpy"), scope)
        with np.errstate(invalid="ignore"):
            assert np.isnan(scope["vectors"](x)) and np.isnan(scope["vectors"](np.array([x, 1.0]))[0])
        if name == "sgn":
            assert math.isnan(scope["kan"](x)) and scope["kan"](-0.0) == 0 and scope["kan"](-3.0) == -1
        else:
            with pytest.raises(ValueError, match="math domain error"):
                scope["kan"](x)


def test_outputs_have_the_shape_of_the_inputs() -> None:
    """Of the function of arrays: also where an output depends on one input, or on none."""
    net = KANLinear(2, 3, dtype=torch.float64)
    net.set_edge_mask(torch.zeros(2, 3))
    symbolic.fix(net, 0, 0, "sin", params=(1.0, 0.0, 1.0, 0.0))
    symbolic.fix(net, 1, 1, "x", params=(1.0, 0.0, 1.0, 0.0))
    call, x = symbolic.to_function(net), np.linspace(0, 1, 5)
    for rows in ((x, x), (x, 2.0), (x[:, None], x)):
        shape = np.broadcast_shapes(*map(np.shape, rows))
        want = [np.sin(rows[0]), rows[1], 0.0]
        for got, value in zip(call(*rows), want, strict=True):
            np.testing.assert_array_equal(got, np.broadcast_to(value, shape))
            assert got.shape == shape
    assert call(0.0, 2.0) == call(x_1=0.0, x_2=2.0) == [0.0, 2.0, 0]
    assert isinstance(call(torch.zeros(3), torch.ones(3))[1], torch.Tensor), "what is no array is left alone"


@pytest.mark.parametrize(
    "call,error,text",
    [
        (lambda m: symbolic.formula(KAN([2, 1])), ValueError, "edge 0 -> 0 of layer 0 has no formula"),
        (lambda m: symbolic.formula(m, ["x"]), ValueError, "expected 2 different"),
        (lambda m: symbolic.formula(m, ["x", "x"]), ValueError, "expected 2 different"),
        (lambda m: symbolic.formula(m, "xy"), TypeError, "names: got 'xy'"),
        (lambda m: symbolic.formula(m, ["x", 3]), TypeError, "names: got"),
        (lambda m: symbolic.formula(m, digits=-1), ValueError, "digits: got -1"),
        (lambda m: symbolic.formula(m, digits=2.0), TypeError, "digits: got 2.0"),
        (lambda m: symbolic.formula(torch.nn.ReLU()), TypeError, "model: got ReLU"),
        (lambda m: symbolic.to_python(m, module="torch"), ValueError, "module: got 'torch'"),
        (lambda m: symbolic.to_python(m, function="1f"), ValueError, "'1f' cannot be a name"),
    ],
)
def test_errors(call: Any, error: type, text: str) -> None:
    """Each names the argument, or the first edge that is in the way."""
    with pytest.raises(error, match=text):
        call(paper())


def test_names_that_the_source_calls() -> None:
    """abs is a built-in that the printed code needs; where it does not, the name is free."""
    net = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(net, 0, 0, "abs", params=(1.0, 0.5, 1.0, 0.0))
    for options in ({"names": ["abs"]}, {"names": ["x"], "function": "abs"}):
        with pytest.raises(ValueError, match="the source calls the built-in 'abs'"):
            symbolic.to_python(net, **options)
    with pytest.raises(ValueError, match="'math' cannot be a name"):
        symbolic.to_python(net, ["math"])
    symbolic.fix(net, 0, 0, "sin", params=(1.0, 0.5, 1.0, 0.0))
    assert "def kan(abs):" in symbolic.to_python(net, ["abs"])


def test_first_edge_without_a_formula_is_named() -> None:
    """By layer, input and output."""
    net = fixed([2, 2, 1], ["sin"])
    symbolic.unfix(net.layers[1], 1, 0)
    with pytest.raises(ValueError, match="edge 1 -> 0 of layer 1 has no formula"):
        symbolic.formula(net)
    for mask in (None, torch.tensor([[0], [1]])):  # a spline beside a formula, as pykan's mode "ns" has it
        net = fixed([2, 1], ["sin"])
        layer, edges = net.layers[0], net.layers[0].symbolic
        layer.set_symbolic(None)
        layer.set_edge_mask(mask)
        layer.set_symbolic(edges)
        edge = "0 -> 0" if mask is None else "1 -> 0"
        with pytest.raises(ValueError, match=f"edge {edge} of layer 0 has a spline beside its formula"):
            symbolic.formula(net)


def test_without_sympy() -> None:
    """Importing the package and fixing edges needs no sympy; a formula says what to install."""
    child("""
import sys
sys.modules["sympy"] = None
import torch
from kan_kernels import KAN, symbolic
net = KAN([2, 1])
symbolic.auto(net, torch.rand(50, 2), r2_threshold=0.0)
try:
    symbolic.formula(net)
except ImportError as error:
    assert "pip install sympy" in str(error), error
else:
    raise AssertionError("no error")
""")


def test_what_rounding_leaves_is_a_formula() -> None:
    """Neither a constant in place of a function, nor no number at all; small terms beside others may go."""
    layer = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(layer, 0, 0, "exp", params=(20.0, -15.0, 1.0, 0.0))
    for call in (symbolic.latex, lambda m, n: symbolic.formula(m, n, digits=4)):
        with pytest.raises(ValueError, match="digits: got 4, but so few decimals leave nothing of 'x'"):
            call(layer, ["x"])
    net = KAN([2, 1, 1], dtype=torch.float64)
    symbolic.fix(net.layers[0], 0, 0, "x", params=(1.0, 0.0, 0.0, -2.0))
    symbolic.fix(net.layers[0], 1, 0, "x", params=(1.0, 0.0, 0.0, 0.0))
    symbolic.fix(net.layers[1], 0, 0, "sqrt", params=(1.0, 0.0, 1.0, 0.0))
    for call in (symbolic.formula, symbolic.to_python, symbolic.to_function):
        with pytest.raises(ValueError, match=r"output 0 is .*, which is no real number"):
            call(net)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, bool])
def test_whole_numbers_do_not_overflow(dtype: type) -> None:
    """NumPy's powers of them would, without a word."""
    layer = KANLinear(1, 1, dtype=torch.float64)
    symbolic.fix(layer, 0, 0, "x^5", params=(1.0, 0.0, 1.0, 0.0))
    x = np.array([200, 1]).astype(dtype)
    exec(symbolic.to_python(layer, module="numpy"), source := {})
    for y in (symbolic.to_function(layer)(x)[0], symbolic.to_function(layer)(x[0])[0], source["kan"](x)):
        np.testing.assert_allclose(y, (x.astype(float) ** 5)[: np.size(y)].reshape(np.shape(y)))
