"""Good manners in torch.library: opcheck, torch.compile, autocast, torch.func, export, forward mode."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import kan_kernels
from cases import OPS, TABLE, Case, build
from harness import DEVICE, FUSED
from kan_kernels import KAN, KANLinear
from kan_kernels import functional as F

NATIVE = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
# opcheck compares results without equal_nan, so NaN and infinities stay out
CHECKED = [
    *[c for c in TABLE if c.points not in ("nan", "inf")][::24],
    Case(0, 3, 4),
    Case(1, 1, 1),
    Case(7, 5, 3, base=None, bias=False),
    Case(7, 5, 3, base="identity", side=True),
    Case(9, 3, 8, dtype=torch.bfloat16, x_dtype=torch.float32),
    Case(9, 3, 8, dtype=torch.float64, layout="sliced"),
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    """Schema, fake kernel, autograd registration and AOT dispatch agree with the real kernel on the table."""
    for case in CHECKED:
        torch.library.opcheck(getattr(torch.ops.kan_kernels, OPS[op]), build(case, DEVICE).args(op))


@NATIVE
@pytest.mark.parametrize("op", OPS)
def test_fake_kernel_matches(op: str) -> None:
    """On meta tensors: the real result's shape, dtype and strides on every case, with nothing computed."""
    for case in TABLE:
        args = build(case, DEVICE).args(op)
        meta = [a.to("meta") if isinstance(a, Tensor) else a for a in args]
        real, fake = (getattr(torch.ops.kan_kernels, OPS[op])(*a) for a in (args, meta))
        for r, f in zip(
            real if isinstance(real, tuple) else (real,),
            fake if isinstance(fake, tuple) else (fake,),
            strict=True,
        ):
            assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride()), case.name
            assert f.device.type == "meta"


def train_step(net: Any, x: Tensor) -> tuple[Tensor, ...]:
    """Output, input gradient, parameter gradients."""
    x = x.detach().requires_grad_()
    y = net(x)
    grads = torch.autograd.grad(y.square().sum(), [x, *(p for p in net.parameters() if p.requires_grad)])
    return (y.detach(), *grads)


@pytest.mark.long
@pytest.mark.parametrize(
    "base,bias,compiler",
    [
        ("silu", True, "inductor"),
        (None, False, "aot_eager"),
        ("identity", False, "aot_eager"),
    ],
)
def test_compile_is_eager(backend: str, base: str | None, bias: bool, compiler: str) -> None:
    """torch.compile(fullgraph=True), forward and backward, gives what eager gives."""
    net = KAN([4, 6, 3], base=base, bias=bias, backend=backend, device=DEVICE)
    x = torch.randn(17, 4, device=DEVICE)
    compiled = torch.compile(net, fullgraph=True, backend=compiler)
    for got, want in zip(train_step(compiled, x), train_step(net, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_compile_other_shapes_and_modes(fused: str) -> None:
    """Compiled kan_linear with leading dimensions, frozen weights and float64: the inference and training
    graphs.
    """
    layer = KANLinear(3, 5, backend=fused, dtype=torch.float64, device=DEVICE)
    layer.spline_weight.requires_grad_(False)
    compiled = torch.compile(layer, fullgraph=True)
    x = torch.randn(2, 7, 3, dtype=torch.float64, device=DEVICE)
    for got, want in zip(train_step(compiled, x), train_step(layer, x), strict=True):
        torch.testing.assert_close(got, want)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.long
def test_no_recompile_for_another_batch(fused: str) -> None:
    """With a dynamic batch one graph serves every batch size; without, at most the one automatic
    recompilation.
    """
    net = KAN([3, 8, 2], backend=fused, device=DEVICE)
    for dynamic, allowed in ((True, 1), (None, 2)):
        torch._dynamo.reset()
        count = CountCompilations()
        compiled = torch.compile(net, fullgraph=True, dynamic=dynamic, backend=count)
        for batch in (16, 33, 64, 7, 130, 1000):
            x = torch.randn(batch, 3, device=DEVICE)
            for got, want in zip(train_step(compiled, x), train_step(net, x), strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        assert count.graphs <= allowed, f"dynamic={dynamic}: compiled {count.graphs} times"


class CountCompilations:
    """A dynamo backend that counts graphs and runs them through AOTAutograd, as the default one does."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, module: Any, example_inputs: Any) -> Any:
        from torch._dynamo.backends.registry import lookup_backend

        self.graphs += 1
        return lookup_backend("aot_eager")(module, example_inputs)


def test_compile_weights_of_other_shapes() -> None:
    """Sizes of weights that are arguments become symbols; the choice of a backend takes numbers."""

    def layer(x: Tensor, weight: Tensor, knots: Tensor) -> Tensor:
        return kan_kernels.functional.kan_linear(x, weight, knots, spline_order=3, base=None)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for fan_in, fan_out in ((3, 4), (5, 4), (6, 7), (6, 8)):
        knots = (torch.arange(12.0) - 6).expand(fan_in, -1).contiguous()
        arguments = torch.rand(5, fan_in), torch.randn(fan_in, 8, fan_out), knots
        assert torch.equal(compiled(*arguments), layer(*arguments))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(backend: str, dtype: torch.dtype) -> None:
    """Autocast rounds the matrix operands only: 16-bit result, x in float32 for the cell, gradients in
    float32.
    """
    layer = KANLinear(3, 40, 100, base=None, backend=backend, device=DEVICE)
    torch.manual_seed(0)
    x = (torch.rand(50, 3, device=DEVICE) * 1.8 - 0.9).requires_grad_()
    exact = layer(x)
    with torch.autocast(torch.device(DEVICE).type, dtype=dtype):
        y = layer(x)
    assert y.dtype == dtype and exact.dtype == torch.float32
    eps, size = torch.finfo(dtype).eps, float(exact.detach().abs().max())
    assert float((y.float() - exact).detach().abs().max()) <= 2 * eps * size
    y.float().square().sum().backward()
    for t in (x, *layer.parameters()):
        assert t.grad is not None and t.grad.dtype == torch.float32
    # if x were rounded to 16 bits before the cell is found, so fine a spline would be off by far more than
    # that
    with torch.no_grad():
        rounded = layer(x.to(dtype).float())
    assert float((rounded - exact).detach().abs().max()) > 4 * float((y.float() - exact).detach().abs().max())


def test_autocast_leaves_float64_alone(backend: str) -> None:
    """Autocast never lowers float64, as torch.nn.Linear's policy does not."""
    layer = KANLinear(3, 4, backend=backend, dtype=torch.float64, device=DEVICE)
    x = torch.randn(5, 3, dtype=torch.float64, device=DEVICE)
    with torch.autocast(torch.device(DEVICE).type, dtype=torch.bfloat16):
        linear = torch.nn.Linear(3, 4, dtype=torch.float64, device=DEVICE)(x)
        assert layer(x).dtype == linear.dtype


def sample(backend: str) -> tuple[KANLinear, Tensor]:
    torch.manual_seed(2)
    layer = KANLinear(3, 4, 5, 4, backend=backend, dtype=torch.float64, device=DEVICE)
    return layer, torch.rand(6, 3, dtype=torch.float64, device=DEVICE) * 1.8 - 0.9


def test_func_grad(backend: str) -> None:
    """torch.func.grad over x and, through functional_call, over the parameters, equals autograd."""
    layer, x = sample(backend)
    params = dict(layer.named_parameters())

    def loss(p: dict[str, Tensor], v: Tensor) -> Tensor:
        return torch.func.functional_call(layer, p, (v,)).square().sum()

    d_params, d_x = torch.func.grad(loss, argnums=(0, 1))(params, x)
    want = train_step(layer, x)[1:]
    for got, true in zip((d_x, *(d_params[name] for name in params)), want, strict=True):
        torch.testing.assert_close(got, true)


def test_func_vmap(backend: str) -> None:
    """vmap over inputs, in any dimension, equals the batch; per-sample gradients equal a loop."""
    layer, x = sample(backend)
    torch.testing.assert_close(torch.func.vmap(layer)(x), layer(x))
    torch.testing.assert_close(
        torch.func.vmap(layer, in_dims=1)(x.view(2, 3, 3)), layer(x.view(2, 3, 3).transpose(0, 1))
    )
    params = {k: v.detach() for k, v in layer.named_parameters()}

    def loss(p: dict[str, Tensor], v: Tensor) -> Tensor:
        return torch.func.functional_call(layer, p, (v[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(params, x)
    for b in range(x.shape[0]):
        one = torch.func.grad(loss)(params, x[b])
        for name in params:
            torch.testing.assert_close(each[name][b], one[name])


def test_func_vmap_over_parameters(backend: str) -> None:
    """An ensemble: stacked parameters and one input."""
    layer, x = sample(backend)
    other = copy.deepcopy(layer)
    other.reset_parameters()
    params, buffers = torch.func.stack_module_state([layer, other])
    got = torch.func.vmap(lambda p, b: torch.func.functional_call(layer, (p, b), (x,)))(params, buffers)
    torch.testing.assert_close(got, torch.stack([layer(x), other(x)]))


def test_func_vmap_over_empty(backend: str) -> None:
    """An empty batch inside vmap, and vmap over columns of another layout."""
    layer, x = sample(backend)
    assert torch.func.vmap(layer)(x.new_empty(4, 0, 3)).shape == (4, 0, 4)
    many = torch.randn(5, 2, 3, 3, dtype=x.dtype, device=DEVICE)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(layer))(many), layer(many))


def test_func_jacobian_and_hessian(backend: str) -> None:
    """jacrev, and the hessian by reverse over reverse, equal torch.autograd.functional's."""
    layer, x = sample(backend)

    def scalar(v: Tensor) -> Tensor:
        return layer(v).square().sum()

    jacobian = torch.func.jacrev(layer)(x[0])
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(layer, x[0]))
    hessian = torch.func.jacrev(torch.func.jacrev(scalar))(x[0])
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(scalar, x[0]))
    per_row = torch.func.vmap(torch.func.jacrev(layer))(x)
    torch.testing.assert_close(per_row[0], jacobian)


def test_forward_mode() -> None:
    """Forward-mode AD is the reference's: jvp, jacfwd, and the hessian as torch.func takes it."""
    layer, x = sample("reference")
    v = torch.randn_like(x)
    tangent = torch.func.jvp(layer, (x,), (v,))[1]
    _, want = torch.autograd.functional.jvp(layer, x, v)
    torch.testing.assert_close(tangent, want)
    torch.testing.assert_close(torch.func.jacfwd(layer)(x[0]), torch.func.jacrev(layer)(x[0]))

    def scalar(v: Tensor) -> Tensor:
        return layer(v).square().sum()

    torch.testing.assert_close(
        torch.func.hessian(scalar)(x[0]), torch.autograd.functional.hessian(scalar, x[0])
    )


def test_forward_mode_of_fused_is_right_or_refused(fused: str) -> None:
    """Forward-mode AD through a fused backend: the right tangent or an error that says what to do, never
    zero.
    """
    layer, x = sample(fused)
    v = torch.randn_like(x)
    reference = copy.deepcopy(layer)
    with kan_kernels.use_backend("reference"):
        reference.backend = None
        want = torch.func.jvp(reference, (x,), (v,))[1]
    try:
        tangent = torch.func.jvp(layer, (x,), (v,))[1]
    except Exception as error:
        assert "reference" in str(error) or "forward" in str(error).lower() or "jvp" in str(error).lower(), (
            error
        )
    else:
        torch.testing.assert_close(tangent, want)


@pytest.mark.long
@pytest.mark.parametrize("strict", (False, True))
def test_export_reference(strict: bool) -> None:
    """torch.export with a dynamic batch: a plain graph that runs at other batch sizes."""
    net = KAN([3, 5, 2], backend="reference", bias=True)
    batch = torch.export.Dim("batch", min=2, max=4096)
    program = torch.export.export(net, (torch.randn(8, 3),), dynamic_shapes=({0: batch},), strict=strict)
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("kan_kernels" in name for name in names), names
    x = torch.randn(100, 3)
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.long
def test_onnx_reference() -> None:
    """The reference exports to ONNX and onnxruntime, where installed, computes the same."""
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript, a test extra")
    net = KAN([3, 5, 2], backend="reference").eval()
    x = torch.randn(11, 3)
    program = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
    assert program is not None
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a test extra")
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), net(x).detach(), rtol=1e-4, atol=1e-5)


def test_basis_is_differentiable() -> None:
    """F.bspline_basis is plain torch too: its autograd derivative is its own next order."""
    _, x = sample("reference")
    grid = KANLinear(3, 1, dtype=torch.float64, device=DEVICE).grid
    x = x.clone().requires_grad_()
    values = F.bspline_basis(x, grid, 3)
    (d,) = torch.autograd.grad(values[..., 4].sum(), x)
    torch.testing.assert_close(d, F.bspline_basis(x.detach(), grid, 3, 1)[..., 4])
