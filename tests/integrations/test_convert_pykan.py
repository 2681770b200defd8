"""pykan 0.2.8, the real package, to KAN and back, and its checkpoint files read as plain data."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import child
from kan_kernels import KAN, KANLinear, symbolic
from kan_kernels.integrations import accelerate
from kan_kernels.integrations.convert import (
    from_efficient_kan,
    from_pykan,
    load_checkpoint,
    to_efficient_kan,
    to_pykan,
)

kan = pytest.importorskip("kan", reason="pykan is not installed: pip install '.[pykan]'")
F64 = torch.float64
HIDDEN_EDGE, OUTER_EDGE = (0, 1, 2), (1, 0, 0)


@pytest.fixture(autouse=True)
def _in_double() -> Any:
    torch.set_default_dtype(F64)  # pykan makes some of its tensors in the default dtype
    yield
    torch.set_default_dtype(torch.float32)


def network(width: Any = (3, 4, 2), **options: Any) -> Any:
    settings: dict[str, Any] = {"grid": 4, "k": 3, "auto_save": False, "seed": 3, "noise_scale": 0.5}
    return kan.MultKAN(list(width), **(settings | options))


def full() -> Any:
    """Moved knots, masked and symbolic edges, affine nodes, grids and orders that differ."""
    model = network(grid=[4, 6], k=[3, 2])
    x = points(300)
    model.update_grid_from_samples(x)
    model.fix_symbolic(*HIDDEN_EDGE, "sin", fit_params_bool=False, verbose=False)
    model.fix_symbolic(*OUTER_EDGE, "x^2", fit_params_bool=False, verbose=False)
    model.symbolic_fun[0].affine.data[2, 1] = torch.tensor([1.5, -0.2, 0.7, 0.1])
    model.set_mode(0, 0, 3, "ns")  # a spline and a formula on one edge
    model.symbolic_fun[0].affine.data[3, 0] = torch.tensor([1.0, 0.3, 2.0, -1.0])
    model.symbolic_fun[0].funs[3][0] = torch.exp
    model.symbolic_fun[0].funs_name[3][0] = "exp"
    model.remove_edge(0, 0, 1)
    for parameters in (model.node_bias, model.node_scale, model.subnode_bias, model.subnode_scale):
        for parameter in parameters:
            parameter.data = torch.randn_like(parameter)
    return model


def points(rows: int = 100) -> Tensor:
    return 1.3 * torch.randn(rows, 3)


def same(got: Tensor, want: Tensor) -> None:
    """A product is associated in another order: a few roundings."""
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * max(1.0, float(want.detach().abs().max())))


@pytest.mark.parametrize("base", ["silu", "identity", "zero"])
def test_from_pykan(base: str) -> None:
    model = network(base_fun=base)
    x = points()
    made = from_pykan(model)
    assert isinstance(made, KAN)
    same(made(x), model(x))
    assert made.layers[0].base == {"zero": None}.get(base, base)
    layer = model.act_fun[1]
    alone = from_pykan(layer)
    assert isinstance(alone, KANLinear)
    hidden = torch.randn(9, 4)
    same(alone(hidden), layer(hidden)[0])
    accelerate(model)
    same(from_pykan(model)(x), made(x))


def test_base_of_each_layer() -> None:
    """pykan's model has one base, its layers call their own."""
    model = network()
    model.act_fun[0].base_fun = nn.Identity()
    x = points()
    made = from_pykan(model)
    same(made(x), model(x))
    assert [layer.base for layer in made.layers] == ["identity", "silu"]


def test_constant_input() -> None:
    """update_grid lets all knots of a constant input coincide: pykan's splines are zero there."""
    model = network()
    x = points(200)
    x[:, 1] = 0.25
    model.update_grid_from_samples(x)
    assert not model.act_fun[0].grid[1].diff().any()
    for rows in (x, points()):
        same(from_pykan(model)(rows), model(rows))


def test_everything_at_once() -> None:
    """Masks, formulas beside and instead of splines, affine nodes; gradients of x too."""
    model = full()
    x = points().requires_grad_()
    made = from_pykan(model)
    want, got = model(x), made(x)
    same(got, want)
    same(*(torch.autograd.grad(y.sin().sum(), x)[0] for y in (got, want)))
    assert made.layers[0].edge_mask is not None and made.layers[0].symbolic is not None
    model.symbolic_enabled = False
    same(from_pykan(model)(x), model(x))


def test_masks_that_are_not_switches() -> None:
    model = network()
    model.act_fun[0].mask.data = torch.rand(3, 4)
    x = points()
    made = from_pykan(model)
    same(made(x), model(x))
    assert made.layers[0].edge_mask is None


def test_to_pykan() -> None:
    """Bias, masks, formulas, a base; then what pykan does with it still works."""
    model = KAN([3, 4, 2], 5, bias=True, grid_range=(-2.0, 2.0), dtype=F64)
    model.layers[1] = KANLinear(4, 2, 7, 2, dtype=F64)
    nn.init.normal_(model.layers[0].bias)
    model.layers[0].set_edge_mask((torch.rand(3, 4) > 0.3).double())
    symbolic.fix(model.layers[0], 1, 2, "1/sqrt", params=(0.1, 3.0, 0.7, 0.1))
    symbolic.fix(model.layers[1], 3, 0, "gaussian", params=(1.0, 0.2, 0.5, -0.1))
    x = points()
    made = to_pykan(model)
    same(made(x), model(x))
    same(from_pykan(made)(x), model(x))
    assert isinstance(made, kan.MultKAN) and made.symbolic_fun[0].funs_name[2][1] == "1/sqrt(x)"
    dataset = {"train_input": x, "train_label": x[:, :2], "test_input": x, "test_label": x[:, :2]}
    made.fit(dataset, opt="Adam", steps=3, lr=1e-3, update_grid=False, log=10)
    same(from_pykan(made)(x), made(x))
    assert to_pykan(model.layers[1])(torch.randn(5, 4)).shape == (5, 2)


def test_to_pykan_keeps_the_seeds() -> None:
    """pykan's constructor sets three global seeds."""
    model = KAN([2, 3, 1], dtype=F64)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    to_pykan(model)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # type: ignore[index]


def test_between_the_peers() -> None:
    """pykan to efficient-kan and back, by way of KAN."""
    model = network()
    x = points()
    other = to_efficient_kan(from_pykan(model))
    same(other(x), model(x))
    same(to_pykan(from_efficient_kan(other))(x), model(x))


def unknown_formula() -> Any:
    model = network()
    model.fix_symbolic(0, 1, 2, lambda x: torch.sin(x) + 1, fit_params_bool=False, verbose=False)
    return model


def renamed_formula() -> Any:
    model = network()
    model.fix_symbolic(0, 1, 2, "sin", fit_params_bool=False, verbose=False)
    model.symbolic_fun[0].funs[2][1] = lambda x: torch.sin(3 * x)
    return model


def selected() -> Any:
    model = network()
    model(points())
    return model.prune_input(active_inputs=[0, 2])


class Doubled(kan.MultKAN):
    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return 2 * super().forward(x, *args, **options)


class DoubledLayer(kan.KANLayer):
    def forward(self, x: Tensor) -> Any:
        y, *rest = super().forward(x)
        return 2 * y, *rest


def changed(change: Callable[[Any], object]) -> Any:
    model = network()
    change(model)
    return model


def coincident(model: Any, by: float = 0.0) -> None:
    grid = model.act_fun[1].grid.data
    grid[2, 7] = grid[2, 6] + by


def rounded(model: Any) -> None:
    """Knots that coincide in the dtype of the coefficients, and not in their own."""
    coincident(model, 1e-12)
    layer = model.act_fun[1]
    for name in ("coef", "scale_base", "scale_sp", "mask"):
        getattr(layer, name).data = getattr(layer, name).data.float()
    for parameters in (model.node_scale, model.node_bias, model.subnode_scale, model.subnode_bias):
        parameters[1].data = parameters[1].data.float()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Doubled([3, 2], grid=4, k=3, auto_save=False),
            "model: Doubled has a forward of its own, expected that of pykan's MultKAN",
        ),
        (
            lambda: DoubledLayer(2, 3),
            "model: DoubledLayer has a forward of its own, expected that of pykan's KANLayer",
        ),
        (
            lambda: changed(lambda m: setattr(m, "forward", lambda x: x)),
            "model: MultKAN has a forward of its own",
        ),
        (
            lambda: changed(lambda m: setattr(m.act_fun[1], "__class__", DoubledLayer)),
            "model: layer 1: DoubledLayer has a forward of its own",
        ),
        (
            lambda: changed(lambda m: (accelerate(m), setattr(m.symbolic_fun[1], "forward", lambda x: x))),
            "model: layer 1: Symbolic_KANLayer has a forward of its own",
        ),
        (
            lambda: changed(lambda m: setattr(m.act_fun[0], "base_fun", nn.Tanh())),
            "model: layer 0: base_fun is Tanh()",
        ),
        (lambda: kan.KANLayer(2, 3, base_fun=nn.SiLU(inplace=True)), "model: base_fun is SiLU(inplace=True)"),
        (lambda: changed(coincident), "model: layer 1: grid: knots of feature 2 do not increase in"),
        (
            lambda: changed(rounded),
            "model: layer 1: grid: knots of feature 2 do not increase in torch.float32",
        ),
        (lambda: network(base_fun=torch.tanh), "model: layer 0: base_fun is <built-in method tanh"),
        (unknown_formula, "model: layer 0: edge 1 -> 2 has the formula 'anonymous'"),
        (renamed_formula, "layer 0: the function of the edge 1 -> 2 is not pykan's 'sin', as it is named"),
        (selected, "input_id selects some of the inputs"),
    ],
)
def test_what_kan_kernels_cannot_hold(make: Any, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # pykan writes checkpoints where it is
    Path("model").mkdir()
    with pytest.raises(ValueError, match=re.escape(message)):
        from_pykan(make())


def mixed_base() -> KAN:
    model = KAN([2, 2, 2])
    model.layers[1] = KANLinear(2, 2, base=None)
    return model


def sigmoid() -> KAN:
    model = KAN([2, 2])
    symbolic.fix(model.layers[0], 0, 1, "sigmoid", params=(1.0, 0.0, 1.0, 0.0))
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mixed_base, "layer 1 has the base None, layer 0 'silu'"),
        (lambda: KAN([2, 2], 5, 0), "layer 0 has spline_order 0"),
        (sigmoid, "layer 0: edge 0 -> 1 has the formula 'sigmoid'"),
        (lambda: KAN([2, 2], dtype=torch.float16), "torch.float16 weights beside torch.float32 knots"),
    ],
)
def test_what_pykan_cannot_hold(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        to_pykan(make())


def test_wrong_types() -> None:
    for wrong in (nn.Linear(2, 2), KAN([2, 2])):
        with pytest.raises(TypeError, match="expected pykan's MultKAN or KANLayer"):
            from_pykan(wrong)
    with pytest.raises(TypeError, match="model: got Linear"):
        to_pykan(nn.Linear(2, 2))


def test_checkpoint(tmp_path: Path) -> None:
    """What saveckpt wrote computes the same, in a process that cannot import pykan."""
    model = full()
    x = points()
    model.saveckpt(str(tmp_path / "mark"))
    want = model(x)
    same(load_checkpoint(tmp_path / "mark")(x), want)
    torch.save((x, want.detach()), tmp_path / "xy")
    child(f"""
import sys, torch
sys.modules["kan"] = None
from kan_kernels.integrations.convert import load_checkpoint
x, y = torch.load({str(tmp_path / "xy")!r})
model = load_checkpoint({str(tmp_path / "mark")!r})
assert (model(x) - y).abs().max() < 1e-11
""")


class Evil:
    def __reduce__(self) -> Any:
        return (Path("evil").write_text, ("ran",))


def test_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle in the state file, and a python object in the yaml file, are refused and not executed."""
    monkeypatch.chdir(tmp_path)
    network().saveckpt("mark")
    torch.save({"act_fun.0.coef": Evil()}, "mark_state")
    with pytest.raises(ValueError, match="mark_state is no file of tensors"):
        load_checkpoint("mark")
    config = Path("mark_config.yml")
    config.write_text("width: !!python/object/apply:pathlib.Path.touch [!!python/name:str '']\n")
    with pytest.raises(ValueError, match=r"mark_config\.yml does not hold plain values"):
        load_checkpoint("mark")
    assert not Path("evil").exists()


def test_bad_checkpoints(tmp_path: Path) -> None:
    """Missing files, missing settings, missing tensors, parts that cannot be held: each by name."""
    path = tmp_path / "mark"
    with pytest.raises(FileNotFoundError, match="mark_config"):
        load_checkpoint(path)
    model = network()
    model.saveckpt(str(path))
    config, state = Path(f"{path}_config.yml"), Path(f"{path}_state")
    text, tensors = config.read_text(), torch.load(state)
    config.write_text("[1, 2]")
    with pytest.raises(ValueError, match="is no mapping of settings"):
        load_checkpoint(path)
    config.write_text(text.replace("symbolic_enabled", "other"))
    with pytest.raises(ValueError, match=r"_config\.yml has no 'symbolic_enabled'"):
        load_checkpoint(path)
    config.write_text(text.replace("base_fun_name: silu", "base_fun_name: gelu"))
    with pytest.raises(ValueError, match="path: base_fun is 'gelu'"):
        load_checkpoint(path)
    config.write_text(text)
    torch.save({key: value for key, value in tensors.items() if key != "act_fun.1.coef"}, state)
    with pytest.raises(ValueError, match=re.escape("_state has no tensor 'act_fun.1.coef'")):
        load_checkpoint(path)
    state.unlink()
    with pytest.raises(FileNotFoundError, match="mark_state"):
        load_checkpoint(path)


def test_missing_packages_are_named() -> None:
    """Without pyyaml or pykan the error says what to install."""
    child("""
import sys
sys.modules["yaml"] = sys.modules["kan"] = None
from kan_kernels import KAN
from kan_kernels.integrations.convert import load_checkpoint, to_pykan
calls = {"install pyyaml": lambda: load_checkpoint("x"), "in a clone": lambda: to_pykan(KAN([1, 1]))}
for remedy, call in calls.items():
    try:
        call()
    except ModuleNotFoundError as error:
        assert remedy in str(error), error
    else:
        raise AssertionError("no error")
""")
