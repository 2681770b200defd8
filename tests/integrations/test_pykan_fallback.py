"""What the kernels do not take of pykan runs its own code, and says so."""

from __future__ import annotations

import importlib
import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import child
from kan_kernels.integrations import accelerate, explain, restore
from kan_kernels.integrations.pykan.model import _identity
from pykan_cases import (
    STATISTICS,
    data,
    give_functions,
    kan,
    room,  # noqa: F401
    same,
    same_parameters,
    same_statistics,
    twins,
)


def reasons(model: torch.nn.Module) -> str:
    return "\n".join(entry.why for entry in accelerate(model).left)


@pytest.mark.parametrize("version", ["0.2.7", None])
def test_version_says_nothing(version: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone that runs from its root has stale metadata or none: it is known by its code."""

    def installed(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    model = kan.KAN(width=[2, 1], auto_save=False)
    assert [entry.name for entry in accelerate(model).taken] == ["", "act_fun.0"]


def mine(self: Any, x: Tensor) -> Any:
    y, *rest = kan_layer_forward(self, x)
    return y.clamp(-0.1, 0.1), *rest


kan_layer_forward = kan.KANLayer.forward


def test_edited_on_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward, or a function that it calls, which was replaced before `accelerate` is what runs."""
    model = kan.KAN(width=[2, 3, 1], auto_save=False)
    x = data(model)
    with monkeypatch.context() as patch:
        patch.setattr(kan.KANLayer, "forward", mine)
        y = model(x)
        report = accelerate(model)
        assert [entry.name for entry in report.taken] == [""], str(report)
        assert "(y, *rest = kan_layer_forward(self, x)) is not pykan KANLayer's" in report.left[0].why
        assert torch.equal(model(x), y)
    restore(model)
    module = importlib.import_module("kan.KANLayer")
    with monkeypatch.context() as patch:
        patch.setattr(
            module, "coef2curve", lambda x_eval, grid, coef, k: 2 * spline.coef2curve(x_eval, grid, coef, k)
        )
        y = model(x)
        assert not [entry for entry in accelerate(model).taken if entry.name], "a layer was taken"
        assert torch.equal(model(x), y)
    restore(model)
    assert len(accelerate(model).taken) == 3
    assert (model(x) - y).abs().max() > 1e-3


@pytest.mark.parametrize("method, penalised", [("reg", True), ("update_grid_from_samples", False)])
def test_edited_methods(method: str, penalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the other methods that have a fast form, an edited one runs as it is."""
    cls = kan.KAN if penalised else kan.KANLayer
    own = getattr(cls, method)
    calls = []
    monkeypatch.setattr(cls, method, lambda self, *args: (calls.append(1), own(self, *args))[1])
    model = kan.KAN(width=[2, 3, 1], auto_save=False)
    accelerate(model)
    x = data(model)
    model(x)
    model.reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1) if penalised else model.update_grid_from_samples(x)
    assert calls


EDITS = {
    "KANLayer.py": ("y = torch.sum(y, dim=1)", "y = 0.4 * torch.sum(y, dim=1)"),
    "spline.py": ("x < grid[:, :, 1:]", "x <= grid[:, :, 1:]"),
    "MultKAN.py": ("x = x_numerical + x_symbolic", "x = x_numerical - x_symbolic"),
}


@pytest.mark.long  # each a process that imports pykan
@pytest.mark.parametrize("file", EDITS)
def test_edited_source_tree(file: str, tmp_path: Path) -> None:
    """A clone whose code was edited, with metadata that say 0.2.8, is not taken for pykan."""
    shutil.copytree(Path(kan.__file__).parent, tmp_path / "kan", ignore=shutil.ignore_patterns("__pycache__"))
    before, after = EDITS[file]
    source = (tmp_path / "kan" / file).read_text()
    assert source.count(before) >= 1
    (tmp_path / "kan" / file).write_text(source.replace(before, after))
    text = child(
        f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import torch, kan
from importlib.metadata import version
from kan_kernels.integrations import accelerate
assert kan.__file__.startswith({str(tmp_path)!r}) and version("pykan") == "0.2.8"
model = kan.KAN(width=[2, 3, 1], auto_save=False, device="cpu")
x = torch.randn(20, 2)
y = model(x)
report = accelerate(model)
assert torch.allclose(model(x), y, atol=1e-5)
print(report)
"""
    )
    wrong = "MultKAN" if file == "MultKAN.py" else "KANLayer"
    assert f"is not pykan {wrong}'s" in text and f"of {file} (" in text
    assert len([line for line in text.splitlines() if line.strip().startswith("taken")]) == (
        2 if wrong == "MultKAN" else 1
    )


spline = importlib.import_module("kan.spline")


class OwnLayer(kan.KANLayer):
    def forward(self, x: Tensor) -> Any:
        y, *rest = super().forward(x)
        return 2 * y, *rest


class OwnModel(kan.KAN):
    def forward(self, x: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0) -> Tensor:
        return 3 * super().forward(x, singularity_avoiding, y_th)


class OwnMethods(kan.KAN):
    def reg(self, *args: Any) -> Tensor:
        return 5 * super().reg(*args)


class OwnUpdate(kan.KANLayer):
    def update_grid_from_samples(self, x: Tensor, mode: str = "sample") -> None:
        super().update_grid_from_samples(2 * x, mode)


def test_subclasses() -> None:
    """One with a forward of its own is left alone; other methods of its own stay in charge."""
    layer = OwnLayer(in_dim=2, out_dim=3)
    assert "OwnLayer has a forward of its own" in reasons(layer) and type(layer) is OwnLayer
    model = OwnModel(width=[2, 3, 1], auto_save=False)
    x = data(model)
    want = model(x)
    report = accelerate(model)
    assert [entry.name for entry in report.taken] == ["act_fun.0", "act_fun.1"]
    same(model(x), want, "y")
    assert model.acts_scale[0].shape == (3, 2)
    model = OwnMethods(width=[2, 3, 1], auto_save=False)
    model(x)
    penalty = model.reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1)
    assert accelerate(model).taken and isinstance(model, OwnMethods)
    model(x)
    same(model.reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1), penalty, "reg")
    changed = OwnUpdate(in_dim=2, out_dim=3)
    accelerate(changed)
    changed.update_grid_from_samples(x)
    knots = changed.grid[:, changed.k : -changed.k]
    same(knots[:, 0].detach(), 2 * x.min(0).values, "first knot")


def test_own_layer_in_a_model() -> None:
    """One layer of another class among accelerated ones."""
    want, got = twins(width=[2, 4, 4, 1])
    for model in (want, got):
        model.act_fun[1].__class__ = OwnLayer
    assert "act_fun 1 (it was not taken)" in explain(got)
    x = data(want)
    same(got(x), want(x), "y")
    same_statistics(got, want)


def test_hooks() -> None:
    """Hooks on layers run, and what they change counts."""
    want, got = twins()
    seen = []
    for model in (want, got):
        model.act_fun[0].register_forward_hook(lambda m, a, out: (seen.append(1), (2 * out[0], *out[1:]))[1])
        model.symbolic_fun[1].register_forward_hook(lambda m, a, out: seen.append(2))
    x = data(want)
    same(got(x), want(x), "y")
    assert seen == [1, 2] * 2
    same_statistics(got, want)


def test_hooks_of_the_base() -> None:
    """A hook on the base function runs, and what it changes counts."""
    want, got = twins()
    seen = []
    for model in (want, got):
        model.act_fun[0].base_fun.register_forward_hook(lambda m, a, out: (seen.append(1), 2 * out)[1])
    x = data(want)
    same(got(x), want(x), "y")
    assert len(seen) == 4 and "act_fun 0 (base_fun is SiLU" in explain(got)  # one SiLU for both layers


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ({"base_fun": torch.nn.SiLU(inplace=True)}, "base_fun is SiLU"),
        ({"base_fun": torch.tanh}, "base_fun is"),
        ({"base_fun": lambda x: 0 * x}, "base_fun is"),
        ({"k": 11, "num": 12}, "k=11"),
    ],
)
def test_options(option: dict[str, Any], why: str) -> None:
    layer = kan.KANLayer(in_dim=2, out_dim=3, **option)
    assert why in reasons(layer) and type(layer) is kan.KANLayer


def test_layer_with_k_0_or_knots_that_learn() -> None:
    layer = kan.KANLayer(in_dim=2, out_dim=3)
    layer.k = 0
    assert "k=0" in reasons(layer)
    layer = kan.KANLayer(in_dim=2, out_dim=3)
    layer.grid.requires_grad_()
    assert "grid requires grad" in reasons(layer)


def test_after_a_cast() -> None:
    """Half precision runs pykan's own code; a cast back, the kernels."""
    want, got = twins()
    x = data(want)
    for dtype, kernels in ((torch.bfloat16, 0), (torch.float32, 3)):
        for model in (want, got):
            model.to(dtype)
        assert explain(got).count("runs the kernels") == kernels
        if not kernels:
            assert "coef is torch.bfloat16" in explain(got) or "grid is torch.bfloat16" in explain(got)
        same(got(x.to(dtype)), want(x.to(dtype)), "y", 1e-5)


def test_autocast() -> None:
    """Outputs keep the parameters' dtype, as pykan's do, and are those of the parameters' precision."""
    torch.set_default_dtype(torch.float32)
    want, got = twins()
    x = data(want)
    with torch.autocast("cpu", torch.bfloat16):
        y, rough = got(x), want(x)
    assert y.dtype == rough.dtype == torch.float32
    same(y, want(x), "y", 1e-5)
    torch.testing.assert_close(rough, y, rtol=0.05, atol=0.05)


def test_wrong_input() -> None:
    """pykan's own errors."""
    want, got = twins()
    mixed = data(want).float()  # pykan computes this one
    same(got(mixed), want(mixed), "y")
    for x in (torch.randn(5, 3)[:, :1], torch.randn(2)):
        errors = []
        for model in (want, got):
            with pytest.raises((RuntimeError, IndexError)) as error:
                model(x)
            errors.append((type(error.value), str(error.value)))
        assert errors[0] == errors[1]


def test_func_and_compile() -> None:
    """torch.func and torch.compile see one differentiable function."""
    want, got = twins()
    x = data(want, 7)
    layers = [m.act_fun[0] for m in (want, got)]
    jacobians = [torch.func.vmap(torch.func.jacrev(lambda r, m=m: m(r[None])[0][0]))(x) for m in layers]
    same(jacobians[1], jacobians[0], "jacobian")
    hessians = [torch.func.hessian(lambda r, m=m: m(r[None])[0].sum())(x[0]) for m in layers]
    same(hessians[1], hessians[0], "hessian", 1e-9)


@pytest.mark.long
@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize("save_act", [False, True])
def test_compiled(save_act: bool, symbolic: bool) -> None:
    """In one graph, as pykan's own."""
    want, got = twins(symbolic_enabled=symbolic)
    want.save_act = got.save_act = save_act
    x = data(want)
    fast = torch.compile(got, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        y = fast(x)
        same(y, want(x), "y")
    y.sum().backward()
    want(x).sum().backward()
    same_parameters(got, want, gradients=True)


def test_compiled_layer() -> None:
    """In one graph, with the dense results and their gradients."""
    want, got = (model.act_fun[0] for model in twins())
    fast = torch.compile(got, backend="aot_eager", fullgraph=True)
    x = torch.randn(20, 2)
    for call in (want, fast):
        y, preacts, postacts, postspline = call(x)
        (y.sum() + (preacts * postacts * postspline).square().sum()).backward()
    for one, other in zip(fast(x), want(x), strict=True):
        same(one, other, "result")
    same_parameters(got, want, gradients=True)


def test_distributed(tmp_path: Path) -> None:
    """Under DistributedDataParallel, with every parameter in the graph that pykan has in it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        want, got = twins()
        x = data(want)
        for model in (want, got):
            torch.nn.parallel.DistributedDataParallel(model)(x).square().mean().backward()
        same_parameters(got, want, gradients=True)
    finally:
        torch.distributed.destroy_process_group()


def test_training_after_inference_mode() -> None:
    """What is kept from a pass, or first read, in inference_mode does not stand in the way of training."""
    want, got = twins()
    give_functions(want, got)
    x = data(want)
    for model in (want, got):
        with torch.inference_mode():
            y = model(x)
        same(model(x).detach(), y, "y")
    with torch.inference_mode():
        same(got.acts_scale[0], want.acts_scale[0], "acts_scale")
        assert all(len(getattr(got, name)) >= 2 for name in STATISTICS)
    for model in (want, got):
        penalty = model.get_reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1)
        (model.acts_scale_spline[0].square().sum() + model.edge_actscale[1].sum() + penalty).backward()
        (model(x).square().mean() + model.act_fun[0](x)[2].sum()).backward()
    same_parameters(got, want, gradients=True)
    same_statistics(got, want)
    with torch.inference_mode():
        got(x)
    with torch.no_grad():
        want(x)
    same_statistics(got, want)


@pytest.mark.parametrize("avoid", [False, True])
def test_default_device(avoid: bool) -> None:
    """A model on the CPU runs whatever the default device is."""
    want, got = twins()
    for model in (want, got):
        model.fix_symbolic(0, 0, 3, "1/x", fit_params_bool=False, log_history=False)
    x = data(want)
    y = want(x, singularity_avoiding=avoid)
    penalty = want.get_reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1)
    _identity.cache_clear()
    torch.set_default_device("meta")
    try:
        same(got(x, singularity_avoiding=avoid), y, "y")
        same(got.get_reg("edge_forward_spline_n", 1.0, 2.0, 0.1, 0.1), penalty, "penalty")
        got.update_grid_from_samples(x)
        got(x).sum().backward()
        statistics = [getattr(got, name) for name in STATISTICS]
    finally:
        torch.set_default_device(None)
    assert all(t.device.type == "cpu" for values in statistics for t in values)
