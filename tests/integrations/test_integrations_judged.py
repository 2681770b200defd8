"""What a probe of a small clone, or of one layer of a class, does not show of another: found in reviews."""

from __future__ import annotations

import ast
import copy
import functools
import linecache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import basis_forms as forms
from benchmarks import efficient_kan_form as efficient
from code_edits import inserted
from kan_kernels.integrations import accelerate, explain, restore
from kan_kernels.integrations._shared import probe

F64 = torch.float64


def fork(cls: type[Any], **methods: Any) -> type[Any]:
    """A copy of a class in which methods are others."""
    body = {key: value for key, value in vars(cls).items() if key not in ("__dict__", "__weakref__")}
    return type(cls.__name__, (nn.Module,), body | methods)


def check(own: nn.Module, x: Tensor, taken: bool | None = None) -> nn.Module:
    """An accelerated copy computes what the layer does, taken or not."""
    own = own.double()
    fast = copy.deepcopy(own)
    report = accelerate(fast)
    assert taken is None or bool(report.taken) is taken, str(report)
    torch.testing.assert_close(fast(x), own(x), rtol=1e-9, atol=1e-9)
    return fast


def own_degrees(start: int, step: int = 1) -> nn.Module:
    layer = forms.ChebyKANLayer(3, 2, 4)
    layer.arange = torch.arange(start, start + 5 * step, step)
    return layer


@pytest.mark.parametrize("layer", [own_degrees(1), own_degrees(1, 2)])
def test_degrees_of_chebyshev(layer: nn.Module) -> None:
    """A buffer of other degrees, from the start or later, is another function."""
    x = torch.randn(6, 3, dtype=F64)
    check(layer, x, taken=False)
    fast = check(forms.ChebyKANLayer(3, 2, 4), x, taken=True)
    own = copy.deepcopy(fast)
    restore(own)
    for changed in (own, fast):
        changed.arange.add_(1)
    torch.testing.assert_close(fast(x), own(x))
    assert "arange does not hold the degrees" in explain(fast)


def first_knots(self: Any, x: Tensor) -> Tensor:
    t, u = self.grid[:1], x[..., None]
    n = t.shape[1]
    value = torch.logical_and(u >= t[:, : n - 1], u < t[:, 1:]).to(x.dtype)
    for p in range(1, self.spline_order + 1):
        m = n - 1 - p
        rising = (u - t[:, :m]) / (t[:, p : p + m] - t[:, :m])
        falling = (t[:, p + 1 : p + 1 + m] - u) / (t[:, p + 1 : p + 1 + m] - t[:, 1 : 1 + m])
        value = rising * value[..., :m] + falling * value[..., 1 : m + 1]
    return value


def test_layers_of_other_sizes_are_judged_for_themselves() -> None:
    """Knots of the first feature for all are right with one feature, and wrong with six."""
    cls = fork(efficient.KANLinear, b_splines=first_knots)
    check(cls(1, 4), torch.randn(5, 1, dtype=F64), taken=True)
    large = cls(6, 4)
    large.grid += 0.1 * torch.arange(6)[:, None]
    check(large, torch.randn(5, 6, dtype=F64), taken=False)


def spline_first(self: Any, x: Tensor) -> Tensor:
    rows = x.reshape(-1, self.in_features)
    y = self.b_splines(rows).flatten(1) @ self.scaled_spline_weight.flatten(1).t()
    y = y + self.base_activation(rows) @ self.base_weight.t()
    return y.reshape(*x.shape[:-1], self.out_features)


def test_activations_that_work_in_place() -> None:
    """Code that evaluates the spline first sees x as it was; set later too, and inside another module."""
    cls = fork(efficient.KANLinear, forward=spline_first)
    x = torch.randn(5, 3, dtype=F64)
    with torch.no_grad():
        fast: Any = check(cls(3, 2, base_activation=lambda: nn.Sequential(nn.Tanh())), x, taken=True)
        own = copy.deepcopy(fast)
        restore(own)
        for layer in (own, fast):
            layer.base_activation = nn.Sequential(nn.ReLU(inplace=True), nn.Tanh())
        torch.testing.assert_close(fast(x.clone()), own(x.clone()))


class WidthOfTheRange(forms.GaussianBasis):
    def __init__(self, low: float, high: float, count: int) -> None:
        super().__init__(low, high, count)
        self.grid_min, self.grid_max = low, high

    def forward(self, x: Tensor) -> Tensor:
        t = (x[..., None] - self.grid) * (self.num_grids - 1) / (self.grid_max - self.grid_min)
        return torch.exp(-(t**2))


def test_options_that_are_not_the_denominator() -> None:
    """A width from the range is another one where the two disagree: in the next layer, and set later."""

    def layer(low: float, high: float) -> Any:
        made = forms.FastKANLayer(3, 2, use_layernorm=False)
        made.rbf = WidthOfTheRange(low, high, 8)
        return made

    x = torch.randn(5, 3, dtype=F64)
    fast = check(layer(-2.0, 2.0), x, taken=True)
    own = copy.deepcopy(fast)
    restore(own)
    for changed in (own, fast):
        changed.rbf.denominator = 0.9
    torch.testing.assert_close(fast(x), own(x))
    second = layer(-1.0, 5.0)
    second.rbf.denominator = 4 / 7
    check(second, x, taken=False)


class Doubled(forms.GaussianBasis):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("way", ["attribute", "table", "add_module", "class"])
def test_another_basis_put_there_in_any_way(way: str) -> None:
    own: Any = forms.FastKANLayer(3, 2).double()
    fast = copy.deepcopy(own)
    assert accelerate(fast).taken
    for layer in (own, fast):
        other = Doubled(-2.0, 2.0, 8).double()
        if way == "attribute":
            layer.rbf = other
        elif way == "table":
            layer._modules["rbf"] = other
        elif way == "add_module":
            layer.add_module("rbf", other)
        else:
            layer.rbf.__class__ = Doubled
    x = torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(fast(x), own(x))


@pytest.mark.parametrize("cut", [":4", "0:1"])
def test_cuts_along_outputs(cut: str) -> None:
    """A copy that returns its first outputs is seen, though the probe's clone is small."""
    source = forms.ChebyKANLayer.forward
    new = inserted(source, f"y = self.whole(x)\nreturn y[..., {cut}]", f"<outputs {cut}>")
    cls = fork(forms.ChebyKANLayer, forward=new, whole=source)
    layer = cls(8, 16, 4).double()
    report = accelerate(layer)
    assert not report.taken and layer(torch.randn(5, 8, dtype=F64)).shape[1] < 16


CUTS = [
    ("n = 60", ":n", "n"),
    ("n = 8 * self.spline_order", ":n", "n"),
    ("", ": 8 * self.spline_order", "8 * self.spline_order"),
    ("n = self.grid_size + self.out_features", ":n", "n"),
    ("", ": self.grid_size + self.spline_order", None),
    ("n = self.spline_order + self.spline_order", ":n", "n"),
    ("n = (self.grid_size, 60)[1]", ":n", "n"),
    ("n = 60\nm = 0\nn, m = m, n", ":m", "m"),
    ("n = self.in_features - 40", ":n", "n"),
    ("", ": 32 + 28", "32 + 28"),
    ("n = 4 * self.grid.shape[1]", ":n", "n"),
    ("for n in range(60):\n    m = n", ": n + 1", "n + 1"),
    ("n = 60\nfor n in range(self.spline_order - 3):\n    m = n", ":n", "n"),
    ("n = 60\nif self.enable_standalone_scale_spline:\n    for n in range(2):\n        m = n", ":n", "n"),
]


@pytest.mark.parametrize("before,cut,said", CUTS)
def test_cuts_along_inputs(before: str, cut: str, said: str | None) -> None:
    """A probe sees cuts along its few features; what lies beyond is a reason to leave a layer alone."""
    new = inserted(efficient.KANLinear.forward, f"{before}\nx = x[:, {cut}]\nx = x", "<inputs>")
    layer = fork(efficient.KANLinear, forward=new)(100, 2, enable_standalone_scale_spline=False)
    said = "on a probe" if said is None else f"cuts at {said}, which no probe sees"
    assert said in accelerate(layer).left[0].why


@pytest.mark.parametrize(
    "line,said",
    [
        ("x = x * [1.0, 2.0, 3.0][self.out_features]", "cuts at self.out_features"),
        ("k = 0\nfor i in range(self.in_features):\n    k = k + 1\nif k > 50:\n    x = 2 * x", "sizes"),
    ],
)
def test_sizes_in_disguise(line: str, said: str) -> None:
    """A table read at a size, and what counts the turns of a loop, are sizes."""
    new = inserted(efficient.KANLinear.forward, line, "<size>")
    layer = fork(efficient.KANLinear, forward=new)(100, 2)
    assert said in accelerate(layer).left[0].why


def test_variants_that_index_and_count() -> None:
    """An index that the clone has not is an error there, so any will do."""

    def by_degree(self: Any, x: Tensor) -> Tensor:
        angle = torch.acos(torch.tanh(x))
        y = torch.cos(angle * 0) @ self.cheby_coeffs[:, :, 0]
        for i in range(1, self.degree + 1):
            y = y + torch.cos(angle * i) @ self.cheby_coeffs[:, :, i]
        return y

    check(fork(forms.ChebyKANLayer, forward=by_degree)(9, 3, 6), torch.randn(5, 9, dtype=F64), taken=True)


def test_cut_by_a_number_of_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A named number is a number: no probe has so many rows."""
    monkeypatch.setattr(forms, "MOST", 8192, raising=False)
    new = inserted(forms.ChebyKANLayer.forward, "x = x[:MOST]", "<most rows>")
    layer = fork(forms.ChebyKANLayer, forward=new)(3, 2, 4).double()
    assert "MOST" in accelerate(layer).left[0].why


def decorated(self: Any, x: Tensor) -> Tensor:
    return efficient.KANLinear.b_splines(self, x.clamp(-1, 1))


def test_methods_that_are_no_plain_functions() -> None:
    """A cached basis and a cached weight are not what the peer has."""
    cls = fork(efficient.KANLinear, b_splines=functools.lru_cache(decorated))
    x = 2 * torch.randn(5, 3, dtype=F64)
    check(cls(3, 2), x, taken=False)
    value = functools.cached_property(efficient.KANLinear.scaled_spline_weight.fget)  # type: ignore[attr-defined]
    cls = fork(efficient.KANLinear, scaled_spline_weight=value)
    value.__set_name__(cls, "scaled_spline_weight")
    check(cls(3, 2), x, taken=False)


def test_sums_under_autocast() -> None:
    """Sums stay in float32 under autocast, where a product would not: another dtype."""

    def summed(self: Any, x: Tensor) -> Tensor:
        angle = torch.acos(torch.tanh(x).view(-1, self.inputdim, 1).expand(-1, -1, self.degree + 1))
        values = torch.cos(angle * self.arange)
        return (values.unsqueeze(2) * self.cheby_coeffs).sum((1, 3))

    layer = fork(forms.ChebyKANLayer, forward=summed)(3, 2, 4)
    fast = copy.deepcopy(layer)
    accelerate(fast)
    with torch.autocast("cpu", torch.bfloat16):
        x = torch.randn(5, 3)
        assert fast(x).dtype == layer(x).dtype


def test_gradients_on_knots() -> None:
    """Cells that hold their right end and not their left: equal values, other slopes on knots."""

    def closed(self: Any, x: Tensor) -> Tensor:
        t, u = self.grid, x[..., None]
        n = t.shape[1]
        value = torch.logical_and(u > t[:, : n - 1], u <= t[:, 1:]).to(x.dtype)
        rising = (u - t[:, : n - 2]) / (t[:, 1 : n - 1] - t[:, : n - 2])
        falling = (t[:, 2:] - u) / (t[:, 2:] - t[:, 1 : n - 1])
        return rising * value[..., : n - 2] + falling * value[..., 1:]

    check(fork(efficient.KANLinear, b_splines=closed)(3, 2, 5, 1), torch.randn(5, 3, dtype=F64), taken=False)


def test_global_hooks() -> None:
    """A hook on every module changes what Linear returns: its own code runs."""
    own: Any = forms.FastKANLayer(3, 2)
    fast = copy.deepcopy(own)
    assert accelerate(fast).taken
    x = torch.randn(5, 3)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: 2 * out if isinstance(module, nn.Linear) else None
    )
    try:
        torch.testing.assert_close(fast(x), own(x))
    finally:
        handle.remove()


def test_fit_of_coefficients_put_on_the_layer() -> None:
    """update_grid uses the layer's own curve2coeff, wherever it comes from."""
    own = efficient.KANLinear(3, 2).double()
    fast = copy.deepcopy(own)
    accelerate(fast)
    for layer in (own, fast):
        layer.curve2coeff = lambda x, y, layer=layer: torch.zeros_like(layer.spline_weight)
        layer.update_grid(torch.randn(100, 3, dtype=F64))
    assert torch.equal(fast.spline_weight, own.spline_weight)


def test_input_of_another_name() -> None:
    """A forward whose argument is called otherwise takes it by that name."""

    def named(self: Any, input: Tensor) -> Tensor:
        angle = torch.acos(torch.tanh(input).view(-1, self.inputdim, 1).expand(-1, -1, self.degree + 1))
        return torch.einsum("bir,ior->bo", torch.cos(angle * self.arange), self.cheby_coeffs)

    fast = check(fork(forms.ChebyKANLayer, forward=named)(3, 2, 4), torch.randn(5, 3, dtype=F64), taken=True)
    x = torch.randn(5, 3, dtype=F64)
    torch.testing.assert_close(fast(input=x), fast(x))


class Closed(forms.ChebyKANLayer):
    """A class that nobody may inherit from."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


def test_a_class_that_cannot_be_inherited_from() -> None:
    """It is left alone, and the layers around it are taken."""
    model = nn.Sequential(forms.ChebyKANLayer(3, 3, 2), Closed(3, 3, 2), forms.ChebyKANLayer(3, 3, 2))
    report = accelerate(model)
    assert [entry.name for entry in report.taken] == ["0", "2"]
    assert "cannot be inherited from: final" in report.left[0].why


class Awkward(nn.Module):
    @property
    def degree(self) -> int:
        raise RuntimeError("not yet")


def test_properties_that_raise() -> None:
    """Nothing of a stranger is read."""
    assert not accelerate(nn.Sequential(Awkward(), forms.ChebyKANLayer(3, 3, 2))).left


def test_a_cell_of_a_notebook() -> None:
    """IPython compiles a cell statement by statement, which makes other byte code of the names it imports."""
    source = (
        "import torch\n"
        "from torch import nn\n"
        "class ChebyKANLayer(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.inputdim, self.outdim, self.degree = 3, 2, 4\n"
        "        self.cheby_coeffs = nn.Parameter(torch.randn(3, 2, 5))\n"
        "        self.register_buffer('arange', torch.arange(5))\n"
        "    def forward(self, x):\n"
        "        rows = torch.tanh(x).view(-1, self.inputdim, 1)\n"
        "        angle = torch.acos(rows.expand(-1, -1, self.degree + 1))\n"
        "        return torch.einsum('bir,ior->bo', torch.cos(angle * self.arange), self.cheby_coeffs)\n"
    )
    name, scope = "<a cell>", {"__name__": "__main__"}
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    for node in ast.parse(source).body:
        exec(compile(ast.Module([node], []), name, "exec", dont_inherit=True), scope)
    check(scope["ChebyKANLayer"](), torch.randn(5, 3, dtype=F64), taken=True)  # type: ignore[operator]


def test_layers_of_many_sizes_share_a_probe() -> None:
    """The clone is small, so that known code is run once for all large layers."""
    layers = [forms.ChebyKANLayer(n, n + 1, 4) for n in range(8, 40)]
    accelerate(layers[0])
    before = len(probe._answers)
    assert len(accelerate(nn.Sequential(*layers[1:])).taken) == 31
    assert len(probe._answers) == before


def test_a_guard_against_cells_without_width() -> None:
    """Forks add something small to the widths, which is much where cells are small."""

    def guarded(self: Any, x: Tensor) -> Tensor:
        t, u = self.grid, x[..., None]
        n = t.shape[1]
        value = torch.logical_and(u >= t[:, : n - 1], u < t[:, 1:]).to(x.dtype)
        rising = (u - t[:, : n - 2]) / (t[:, 1 : n - 1] - t[:, : n - 2] + 1e-10)
        falling = (t[:, 2:] - u) / (t[:, 2:] - t[:, 1 : n - 1] + 1e-10)
        return rising * value[..., : n - 2] + falling * value[..., 1:]

    layer = fork(efficient.KANLinear, b_splines=guarded)(3, 2, 5, 1, grid_range=(-1e-6, 1e-6))
    check(layer, 1e-6 * torch.randn(5, 3, dtype=F64), taken=False)
