"""Bad input: the right exception, naming the argument, what came and what was expected, before any kernel
runs.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kan_kernels._C
import numpy as np
import pytest
import torch

import kan_kernels
from cases import OPS, Case, build
from harness import DEVICE, FUSED, ROOT, child
from kan_kernels import KAN, KANLinear, available_backends, explain, to_numpy_model, use_backend
from kan_kernels import functional as F

NATIVE = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
BF16 = torch.bfloat16


def good() -> dict[str, Any]:
    """Arguments of a valid kan_linear call: in 3, out 4, G 5, k 2."""
    made = KANLinear(3, 4, 5, 2, bias=True, device=DEVICE)
    return {
        "x": torch.randn(6, 3, device=DEVICE),
        "spline_weight": made.spline_weight.detach(),
        "grid": made.grid.clone(),
        "spline_order": 2,
        "base_weight": made.base_weight.detach(),
        "base": "silu",
        "bias": made.bias.detach(),
        "backend": None,
    }


def knots(change: Callable[[torch.Tensor], None]) -> Callable[[dict[str, Any]], torch.Tensor]:
    def make(a: dict[str, Any]) -> torch.Tensor:
        grid = a["grid"].clone()
        change(grid)
        return grid

    return make


def decrease(grid: torch.Tensor) -> None:
    grid[1, 4] = grid[1, 3] - 0.1


def with_nan(grid: torch.Tensor) -> None:
    grid[2, 0] = torch.nan


def with_inf(grid: torch.Tensor) -> None:
    grid[0, -1] = torch.inf


Wrong = tuple[str, Any, type[Exception], tuple[str, ...]]
BAD: dict[str, Wrong] = {
    # argument, its wrong value (or how to make it from the good ones), exception, what the message must say
    "x rank 0": ("x", torch.tensor(1.0), ValueError, ("()", "3")),
    "x features": ("x", torch.randn(6, 5), ValueError, ("5", "3")),
    "x features of 1 row": ("x", torch.randn(5), ValueError, ("5", "3")),
    "x is an array": ("x", np.zeros((6, 3), np.float32), TypeError, ("ndarray", "Tensor")),
    "x is None": ("x", None, TypeError, ("None", "Tensor")),
    "x integer": ("x", torch.zeros(6, 3, dtype=torch.int64), TypeError, ("int64", "float32")),
    "x complex": ("x", torch.zeros(6, 3, dtype=torch.complex64), TypeError, ("complex64", "float32")),
    "x float64": ("x", torch.randn(6, 3).double(), TypeError, ("float64", "float32")),
    "x bfloat16": ("x", torch.randn(6, 3).bfloat16(), TypeError, ("bfloat16", "float32")),
    "x on meta": ("x", torch.empty(6, 3, device="meta"), ValueError, ("meta", "cpu", "x")),
    "spline_weight rank": ("spline_weight", torch.randn(3, 7), ValueError, ("2", "3")),
    "spline_weight rows": ("spline_weight", torch.randn(3, 6, 4), ValueError, ("6", "7")),
    "spline_weight list": ("spline_weight", [[1.0]], TypeError, ("list", "Tensor")),
    "spline_weight integer": ("spline_weight", torch.ones(3, 7, 4, dtype=torch.int32), TypeError, ("int32",)),
    "base_weight shape": ("base_weight", torch.randn(4, 3), ValueError, ("(4, 3)", "(3, 4)")),
    "base_weight rank": ("base_weight", torch.randn(12), ValueError, ("12", "(3, 4)")),
    "base_weight dtype": ("base_weight", torch.randn(3, 4).double(), TypeError, ("float64", "float32")),
    "base_weight missing": ("base_weight", None, ValueError, ("None", "silu")),
    "base_weight device": ("base_weight", torch.empty(3, 4, device="meta"), ValueError, ("meta", "cpu")),
    "bias shape": ("bias", torch.randn(3), ValueError, ("3", "4")),
    "bias rank": ("bias", torch.randn(4, 1), ValueError, ("(4, 1)", "(4,)")),
    "bias dtype": ("bias", torch.randn(4).half(), TypeError, ("float16", "float32")),
    "grid rank": ("grid", torch.linspace(-1, 1, 10), ValueError, ("1", "2")),
    "grid features": ("grid", lambda a: a["grid"][:2], ValueError, ("2", "3")),
    "grid too short": ("grid", lambda a: a["grid"][:, :5].clone(), ValueError, ("5", "6")),
    "grid integer": ("grid", lambda a: a["grid"].long(), TypeError, ("int64",)),
    "grid float64": ("grid", lambda a: a["grid"].double(), TypeError, ("float64", "float32")),
    "grid None": ("grid", None, TypeError, ("None", "Tensor")),
    "grid on meta": ("grid", lambda a: a["grid"].to("meta"), ValueError, ("meta", "cpu")),
    "grid decreasing": ("grid", knots(decrease), ValueError, ("4", "1", "non-decreasing")),
    "grid NaN": ("grid", knots(with_nan), ValueError, ("nan", "finite")),
    "grid inf": ("grid", knots(with_inf), ValueError, ("inf", "finite")),
    "spline_order negative": ("spline_order", -1, ValueError, ("-1", "0..10")),
    "spline_order large": ("spline_order", 11, ValueError, ("11", "0..10")),
    "spline_order float": ("spline_order", 2.0, TypeError, ("2.0", "int")),
    "spline_order bool": ("spline_order", True, TypeError, ("True", "int")),
    "spline_order text": ("spline_order", "2", TypeError, ("'2'", "int")),
    "base unknown": ("base", "gelu", ValueError, ("gelu", "silu", "identity", "None")),
    "base case": ("base", "SiLU", ValueError, ("SiLU", "silu")),
    "base code": ("base", 1, TypeError, ("1", "silu")),
    "backend unknown": ("backend", "cuda", ValueError, ("cuda", "native", "reference")),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_kan_linear_refuses(name: str) -> None:
    """The message starts with the argument's name and says what came and what was expected; a warm
    cache too.
    """
    argument, wrong, kind, parts = BAD[name]
    a = good()
    F.kan_linear(**a)
    value = wrong(a) if callable(wrong) else wrong
    a[argument] = value
    for _ in range(2):
        with pytest.raises(kind) as caught:
            F.kan_linear(**a)
        message = str(caught.value)
        assert re.match(rf"`?{argument}\b" if "on meta" not in name else r"\w+", message), message
        assert "expected" in message, message
        for part in parts:
            assert part in message, (part, message)


def test_x_of_the_right_size_on_another_order() -> None:
    """The same grid under another spline_order asks for other weights: the shape that disagrees is named."""
    a = good()
    with pytest.raises(ValueError, match=r"spline_weight.*7.*6"):
        F.kan_linear(**{**a, "spline_order": 3})


def test_base_weight_without_base() -> None:
    """A weight that would be ignored is an error."""
    with pytest.raises(ValueError, match=r"base_weight.*tensor.*None.*expected"):
        F.kan_linear(**{**good(), "base": None})


def test_grid_gradient_is_refused() -> None:
    """There is no gradient for knots, so asking for one is an error, not silence."""
    a = good()
    with pytest.raises(ValueError, match=r"grid.*grad"):
        F.kan_linear(**{**a, "grid": a["grid"].requires_grad_()})


def test_knots_are_checked_after_a_change() -> None:
    """A grid that was good and is changed in place is looked at again."""
    a = good()
    F.kan_linear(**a)
    with torch.no_grad():
        decrease(a["grid"])
    with pytest.raises(ValueError, match=r"grid.*non-decreasing"):
        F.kan_linear(**a)


@pytest.mark.parametrize("widths", [(2, 5, 1), (40, 50, 3)])
@pytest.mark.parametrize("counted", [True, False])
def test_knots_of_a_layer_that_are_written_into(widths: tuple[int, ...], counted: bool) -> None:
    """Under no_grad or through .data, which torch does not count: the layer, the feature and the knots."""
    net, x = KAN(widths), torch.rand(3, widths[0])
    y = net(x)
    grid = net.layers[1].grid
    before = grid.clone()
    for change, message in (
        (lambda t: t[1, 4].fill_(7.0), r"knot 5 of feature 1 is -0\.2\d* after 7\.0, expected finite"),
        (lambda t: t[3:].neg_(), r"knot 1 of feature 3 is 1\.\d+ after 2\.\d+, expected finite"),
        (lambda t: t[-1, -1].fill_(math.nan), r"knot 11 of feature 4 is nan after 1\.\d+"),
    ):
        if len(before) == 50:
            message = message.replace("feature 4", "feature 49")
        with torch.no_grad():
            change(grid if counted else grid.data)
        name = rf"KANLinear\({widths[1]}, {widths[2]}, grid_size=5.*\): grid: "
        with pytest.raises(ValueError, match=rf"^layers\[1\], {name}{message}"):
            net(x)
        with pytest.raises(ValueError, match=rf"^{name}{message}"):
            net.layers[1](torch.rand(3, widths[1]))
        with torch.no_grad():
            (grid if counted else grid.data).copy_(before)
        assert torch.equal(net(x), y)


def test_float64_beside_float32_knots() -> None:
    """What may be mixed is mixed: float32 knots beside any weights, float32 x beside 16-bit weights; no
    error.
    """
    made = KANLinear(3, 4, device=DEVICE)
    weights = (made.spline_weight.detach(), made.base_weight.detach())
    for dtype, x_dtype in ((torch.float64, torch.float64), (BF16, torch.float32), (BF16, BF16)):
        c, w = (t.to(dtype) for t in weights)
        x = torch.randn(2, 3, device=DEVICE).to(x_dtype)
        assert F.kan_linear(x, c, made.grid, spline_order=3, base_weight=w).dtype == dtype


@pytest.mark.parametrize("arguments,kind,match", [
    (dict(in_features=0), ValueError, "in_features.*0.*expected"),
    (dict(in_features=2.0), TypeError, "in_features.*2.0.*expected"),
    (dict(out_features=-1), ValueError, "out_features.*-1.*expected"),
    (dict(out_features="4"), TypeError, "out_features.*'4'.*expected"),
    (dict(grid_size=0), ValueError, "grid_size.*0.*expected"),
    (dict(grid_size=None), TypeError, "grid_size.*None.*expected"),
    (dict(spline_order=11), ValueError, r"spline_order.*11.*expected.*0\.\.10"),
    (dict(spline_order=-1), ValueError, "spline_order.*-1.*expected"),
    (dict(grid_range=(1.0, -1.0)), ValueError, "grid_range.*-1.0.*expected"),
    (dict(grid_range=(1.0, 1.0)), ValueError, "grid_range.*1.0.*expected"),
    (dict(grid_range=(0.0, float("nan"))), ValueError, "grid_range.*nan.*expected"),
    (dict(grid_range=(0.0, float("inf"))), ValueError, "grid_range.*inf.*expected"),
    (dict(grid_range=3.0), TypeError, "grid_range.*3.0.*expected"),
    (dict(grid_range=(0.0, 1.0, 2.0)), (TypeError, ValueError), "grid_range.*2.0.*expected"),
    (dict(base="relu"), ValueError, "base.*relu.*expected"),
    (dict(base=torch.nn.SiLU()), TypeError, "base.*SiLU.*expected"),
    (dict(backend="tpu"), ValueError, "backend.*tpu.*expected"),
    (dict(dtype=torch.int32), TypeError, "dtype.*int32.*expected"),
    (dict(dtype=torch.complex64), TypeError, "dtype.*complex64.*expected"),
], ids=str)  # fmt: skip
def test_kanlinear_refuses(arguments: dict[str, Any], kind: Any, match: str) -> None:
    """Constructor arguments are checked when the layer is made, not when it first runs."""
    with pytest.raises(kind, match=match):
        KANLinear(**{"in_features": 3, "out_features": 4, **arguments})


@pytest.mark.parametrize(
    "widths,kind",
    [
        ([3], ValueError),
        ([], ValueError),
        (3, TypeError),
        ("35", TypeError),
        ([3, 0], ValueError),
        ([3, 2.5], TypeError),
        (None, TypeError),
    ],
)
def test_kan_refuses(widths: Any, kind: type[Exception]) -> None:
    """widths: a sequence of at least two positive ints."""
    with pytest.raises(kind, match=r"widths.*expected"):
        KAN(widths)
    with pytest.raises(ValueError, match="spline_order"):
        KAN([2, 1], spline_order=12)


@pytest.mark.parametrize("change,kind,match", [
    (dict(x=torch.randn(4, 2)), ValueError, "x.*2.*expected.*3"),
    (dict(grid=torch.arange(18.0).view(3, 6).double()), TypeError, "grid.*float64.*expected.*float32"),
    (dict(x=[1.0]), TypeError, "x.*list.*expected"),
    (dict(spline_order=11), ValueError, "spline_order.*11.*expected"),
    (dict(derivative=-1), ValueError, "derivative.*-1.*expected"),
    (dict(derivative=33), ValueError, "derivative.*33.*expected"),
    (dict(derivative=1.5), TypeError, "derivative.*1.5.*expected"),
    (dict(grid=torch.zeros(3)), ValueError, "grid.*1.*expected.*2"),
    (dict(grid=torch.zeros(3, 3)), ValueError, "grid.*3.*expected.*6"),
    (dict(grid=torch.tensor([[3.0, 2, 1, 0, -1, -2]] * 3)), ValueError, "grid.*non-decreasing"),
])  # fmt: skip
def test_bspline_basis_refuses(change: dict[str, Any], kind: type[Exception], match: str) -> None:
    a = {"x": torch.randn(4, 3), "grid": good()["grid"].cpu(), "spline_order": 2, "derivative": 0}
    F.bspline_basis(**a)
    with pytest.raises(kind, match=match):
        F.bspline_basis(**{**a, **change})


def test_use_backend_refuses() -> None:
    """An unknown name is an error at once, and the choice is restored after any exception inside."""
    with pytest.raises(ValueError, match=r"cuda.*expected.*native.*reference"), use_backend("cuda"):
        pass
    made, x = KANLinear(3, 4, device=DEVICE), torch.randn(2, 3, device=DEVICE)
    with pytest.raises(KeyError), use_backend("reference"):
        with use_backend("reference"):
            pass
        assert "reference" in explain(made)
        raise KeyError
    made(x)
    assert "reference" not in explain(made) or "native" not in FUSED
    with pytest.raises(ValueError, match="expected"):
        explain((3, 4), backend="nope")


def test_explain_and_available() -> None:
    """available_backends names every backend with None or a reason; explain says which runs and why."""
    available = available_backends()
    assert set(available) >= {"native", "reference"} and available["reference"] is None
    assert all(reason is None or len(reason) > 10 for reason in available.values())
    text = explain(KAN([2, 5, 1], backend="reference"))
    assert text.count("reference") >= 2 and "2 -> 5" in text and "5 -> 1" in text
    assert isinstance(explain((64, 64)), str)


def test_asking_for_a_backend_never_falls_back(fused: str) -> None:
    """A backend that is asked for by name and cannot run the case raises its reason."""
    net = KAN([2, 3], backend=fused, device="meta")
    with pytest.raises(RuntimeError, match=f"{fused}.*meta"):
        net(torch.empty(4, 2, device="meta"))


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_ops_check_too(op: str) -> None:
    """The C++ ops refuse what would read out of bounds even if called directly."""
    call = getattr(torch.ops.kan_kernels, OPS[op])
    inputs = build(Case(6, 3, 4, 5, 2, 0, side=True))
    args = list(inputs.args(op))
    call(*args)
    tensors = [n for n, a in enumerate(args) if isinstance(a, torch.Tensor)]
    for n in tensors:
        for wrong in (args[n][:-1], args[n][None, None], args[n].long()):
            if op in ("input", "backward") and n == 0 and wrong.dtype == args[n].dtype and wrong.dim() == 2:
                wrong = args[n][:, :-1]
            changed = [wrong if i == n else a for i, a in enumerate(args)]
            if op == "forward" and n == 0 and wrong.dim() == 2 and wrong.dtype == args[n].dtype:
                changed[1] = wrong[:-1]
            with pytest.raises((RuntimeError, ValueError, TypeError)):
                call(*changed)
    above = 34 if op == "input" else 33  # the gradient of an output of order 32 asks for one more
    bad = ((-5, 6), (-4, 11), (-4, -1), (-3, 3), (-3, -1), (-3, 0), (-2, -1), (-2, above), (-1, 9), (-1, -1))
    for n, wrong in bad:
        changed = list(args)
        changed[n] = wrong
        if (n, wrong) == (-3, 0) and op == "weight":
            continue  # base 0 is right there: nothing disagrees with it
        with pytest.raises((RuntimeError, ValueError, TypeError)):
            call(*changed)


def test_numpy_model_refuses() -> None:
    """The NumPy path names its argument as well."""
    with pytest.raises(TypeError, match="expected"):
        to_numpy_model(torch.nn.Linear(2, 3))
    model = to_numpy_model(KAN([2, 3]))
    for x in (np.zeros((4, 3)), np.zeros(2), np.zeros((1, 4, 2)), 1.0):
        with pytest.raises(ValueError, match=r"x.*expected"):
            model(x)


BROKEN = """
import sys, torch, kan_kernels, kan_kernels._core.library as ops
from kan_kernels import KAN, available_backends, explain
assert not kan_kernels.__file__.startswith({root!r}), kan_kernels.__file__
reason = available_backends()["native"]
assert {expected!r} in reason, reason
assert available_backends()["reference"] is None
net = KAN([2, 5, 1], backend="reference")
net(torch.randn(4, 2)).sum().backward()
assert net.layers[0].spline_weight.grad is not None
assert {expected!r} in explain((2, 5)), explain((2, 5))
try:
    KAN([2, 5, 1], backend="native")(torch.randn(4, 2))
except RuntimeError as error:
    assert {expected!r} in str(error), error
else:
    raise SystemExit("native ran without a library")
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    KAN([2, 5, 1])(torch.randn(4, 2))
    KAN([2, 5, 1])(torch.randn(4, 2))
messages = [str(w.message) for w in caught]
assert messages and len(set(messages)) == len(messages), "once: it is the slow one"
"""


@pytest.mark.parametrize(
    "damage", ("missing", *(pytest.param(name, marks=pytest.mark.long) for name in ("garbage", "foreign")))
)
def test_without_a_library(tmp_path: Path, damage: str) -> None:
    """The package imports, reference works, native says why it cannot run, `python -m kan_kernels` shows the
    reason.
    """
    source = Path(kan_kernels.__file__).parent
    shutil.copytree(
        source, tmp_path / "kan_kernels", ignore=shutil.ignore_patterns("__pycache__", "*.so", "*.dylib")
    )
    libraries = [p for p in (source / "lib").glob("lib*") if p.is_file()]
    folder = tmp_path / "kan_kernels" / "lib"
    folder.mkdir(exist_ok=True)
    for library in libraries or [source / "lib" / "libkan_kernels.so"]:
        if damage == "garbage":
            (folder / library.name).write_text("this is no library\n" * 500)
        if damage == "foreign":  # loads well, but holds no op of ours
            shutil.copy(kan_kernels._C.__file__, folder / library.name)
    expected = {
        "missing": "does not exist",
        "garbage": "invalid ELF header",
        "foreign": "kan_kernels::kan_linear",
    }[damage]
    child(BROKEN.format(root=str(ROOT) + "/", expected=expected), root=tmp_path)
    shown = child(
        "import runpy, sys; sys.argv = ['kan_kernels']; runpy.run_module('kan_kernels', run_name='__main__')",
        root=tmp_path, ok=False,
    )  # fmt: skip
    assert expected in shown and "reference" in shown and "Traceback" not in shown, shown
