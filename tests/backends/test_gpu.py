"""What only a GPU can show: streams, graphs, synchronisation, memory, several devices, tensors past 2^31."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from activation_cases import build_activation, check_activation
from cases import OPS, Case, build
from harness import check_op
from kan_kernels import KAN, KANLinear
from kan_kernels import functional as F
from kan_kernels._core.problem import Problem
from kan_kernels._engine.dispatch import choose, explain
from kan_kernels.backends import BACKENDS

HAVE_GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAVE_GPU, reason="torch finds no GPU on this machine"),
]


def reason_against(name: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the backend cannot run a layer of this dtype on the GPU, or None."""
    reason: str | None = BACKENDS[name].can_run(Problem("cuda", dtype, dtype, 8, 8, 8, 3))
    return reason


def needs_dtype(name: str, dtype: torch.dtype) -> None:
    """Skip where the backend says it has no kernels of this dtype here (float64 on ROCm, say)."""
    reason = reason_against(name, dtype)
    if reason is not None:
        pytest.skip(reason)


# Without a GPU nothing runs, and one skipped test a function says so.
ON_GPU = [name for name in BACKENDS if name != "reference" and HAVE_GPU and reason_against(name) is None] or [
    "no fused backend"
]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(params=ON_GPU)
def fused(request: pytest.FixtureRequest) -> str:
    """Every fused backend that runs on the GPU; none at all is a failure."""
    name = str(request.param)
    assert name in BACKENDS, {name: reason_against(name) for name in BACKENDS}
    return name


@pytest.fixture(autouse=True)
def _clean_device() -> Iterator[None]:
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.set_float32_matmul_precision("highest")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()


def network(
    backend: str | None, widths: tuple[int, ...] = (19, 40, 7), device: str = "cuda", **options: Any
) -> KAN:
    """The same weights whatever the device and backend."""
    torch.manual_seed(5)
    return KAN(list(widths), bias=True, backend=backend, **options).to(device)


def points(rows: int, features: int, device: str = "cuda", dtype: torch.dtype = torch.float32) -> Tensor:
    gen = torch.Generator().manual_seed(7)
    return (torch.rand(rows, features, generator=gen) * 2.4 - 1.2).to(device, dtype)


def step(net: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradient of x, gradients of the parameters."""
    x = x.detach().requires_grad_()
    y = net(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *net.parameters()])]


def as_oracle(net: KAN) -> KAN:
    """The same numbers in float64 on the reference backend."""
    oracle = copy.deepcopy(net).double()
    for layer in oracle.layers:
        layer.backend = "reference"
    return oracle


def same(got: list[Tensor], want: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_close_to_float64(fused: str, dtype: torch.dtype) -> None:
    """A network in every dtype against the float64 reference from the same rounded numbers."""
    needs_dtype(fused, dtype)
    net, x = network(fused, dtype=dtype), points(201, 19, dtype=dtype)
    oracle = as_oracle(net)
    # a rounding of each operand and of what passes between the layers, as in plain torch, with room
    tolerance = 64 * torch.finfo(dtype).eps if dtype.itemsize > 2 else 6 * torch.finfo(dtype).eps
    for got, want in zip(step(net, x), step(oracle, x.double()), strict=True):
        error = (got.double() - want).abs().max() / want.abs().max()
        assert float(error) <= tolerance


@pytest.mark.parametrize("op", OPS)
def test_float32_is_float32(fused: str, op: str) -> None:
    """Long sums in strict float32 err at most twice as much as plain torch's: no TF32 unasked."""
    case = Case(300, 256, 70)
    check_op(fused, op, case, build(case, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", OPS)
def test_activations(op: str, dtype: torch.dtype) -> None:
    """Functions without a sum, looked up and evaluated, in a block of heads and in several, sums in parts."""
    needs_dtype("triton", dtype)
    for case in (
        Case(5000, 70, 1, dtype=dtype), Case(300, 64, 4, knots="adaptive", dtype=dtype, points="nan"),
        Case(700, 33, 3, order=5, dtype=dtype),
        Case(300, 20, 2, 9, basis="chebyshev", points="inside", dtype=dtype),
        Case(257, 16, 3, dtype=dtype, side=True, layout="transposed"),
    ):  # fmt: skip
        check_activation("triton", op, case, build_activation(case, "cuda"))


def test_tf32_where_torch_allows_it(fused: str) -> None:
    """With matmul precision "high" results keep TF32's eleven bits; switching back restores float32."""
    net, x = network(fused, (512, 256)), points(2048, 512)
    oracle = as_oracle(net)
    (strict, *_), (truth, *_) = step(net, x), step(oracle, x.double())
    torch.set_float32_matmul_precision("high")
    (loose, *_) = step(net, x)
    torch.set_float32_matmul_precision("highest")
    (again, *_) = step(net, x)
    assert float((loose.double() - truth).abs().max() / truth.abs().max()) <= 2.0**-9
    assert torch.equal(again, strict)


def test_non_default_stream(fused: str) -> None:
    """Work goes to the current stream: it sees what that stream wrote before, however late that was."""
    net, real = network(fused), points(501, 19)
    want = step(net, real)
    stream = torch.cuda.Stream()
    x = torch.zeros_like(real)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # about 0.1 s: a launch on another stream would run before the copy
        x.copy_(real)
        got = step(net, x)
    stream.synchronize()
    assert same(got, want)


def test_two_streams_at_once(fused: str) -> None:
    """Calls in flight on two streams share no scratch memory."""
    nets = [network(fused, (64, 130, 64)), network(fused, (33, 70, 9))]
    inputs = [points(3000, 64), points(2000, 33)]
    want = [step(net, x) for net, x in zip(nets, inputs, strict=True)]
    streams = [torch.cuda.Stream() for _ in nets]
    torch.cuda.synchronize()
    got: list[list[Tensor]] = [[], []]
    for _ in range(8):
        for n, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                got[n] = step(nets[n], inputs[n])
    torch.cuda.synchronize()
    assert same(got[0], want[0]) and same(got[1], want[1])


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_graph_of_a_training_step(fused: str, dtype: torch.dtype) -> None:
    """Five captured training steps on five batches leave the very weights that eager ones leave."""
    eager, captured = network(fused, dtype=dtype), network(fused, dtype=dtype)
    batches = [points(130 + n, 19, dtype=dtype)[n:] for n in range(5)]
    x = batches[0].clone()

    def make_step(net: KAN) -> Callable[[], Tensor]:
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)

        def run() -> Tensor:
            optimizer.zero_grad()
            loss = net(x).float().square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    train = make_step(captured)
    start = copy.deepcopy(captured.state_dict())
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            train()
    torch.cuda.current_stream().wait_stream(side)
    captured.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = train()
    with torch.no_grad():
        for name, tensor in captured.state_dict().items():
            tensor.copy_(start[name])
    plain = make_step(eager)
    for batch in batches:
        x.copy_(batch)
        graph.replay()
        assert torch.equal(loss, plain())
    assert same(list(captured.parameters()), list(eager.parameters()))


def test_no_synchronisation(fused: str) -> None:
    """Nothing in forward, backward or second derivatives waits for the GPU, once everything was compiled."""
    net, x = network(fused), points(333, 19).requires_grad_()

    def run() -> None:
        (dx,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        dx.square().sum().backward()
        step(net, x)

    run()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    run()


def test_automatic_choice_is_fused() -> None:
    """Nothing asked for, a fused backend runs, in every dtype that one of them has."""
    for dtype in DTYPES:
        situation = Problem("cuda", dtype, dtype, 19, 40, 8, 3)
        if any(BACKENDS[name].can_run(situation) is None for name in ON_GPU if name in BACKENDS):
            assert choose(situation).backend.NAME in ON_GPU
    assert explain(network(None)).count("on cuda") == 2


@pytest.mark.parametrize("grid_size", (5, 64))
def test_memory(fused: str, grid_size: int) -> None:
    """Forward and backward need O(B (I + O)) beyond the weights' gradients, whatever the grid."""
    batch, width = 1 << 16, 64
    net = network(fused, (width, width), grid_size=grid_size)
    x = points(batch, width).requires_grad_()
    g = torch.ones(batch, width, device="cuda")

    def run() -> None:
        net.zero_grad()
        x.grad = None
        net(x).backward(g)

    run()
    net.zero_grad()
    x.grad = None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    signals = 4 * batch * (width + width)
    weights = sum(p.numel() * p.element_size() for p in net.parameters())
    assert extra <= 4 * signals + 8 * weights, f"{extra / signals:.1f} times x and y"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("current", (0, 1))
def test_another_device(fused: str, current: int) -> None:
    """Tensors decide where a kernel runs, not the current device, which stays what it was."""
    want = step(network(fused, device="cuda:0"), points(99, 19, "cuda:0"))
    with torch.cuda.device(current):
        net, x = network(fused, device="cuda:1"), points(99, 19, "cuda:1")
        got = step(net, x)
        assert torch.cuda.current_device() == current
        assert all(t.device == torch.device("cuda:1") for t in got)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-5)


def test_devices_are_not_mixed(fused: str) -> None:
    """A CPU tensor among those of the GPU is an error that names the argument."""
    layer = KANLinear(3, 4, backend=fused, device="cuda")
    with pytest.raises(ValueError, match="spline_weight"):
        layer(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="grid"):
        F.kan_linear(
            torch.zeros(2, 3, device="cuda"), layer.spline_weight, layer.grid.cpu(), spline_order=3,
            base_weight=layer.base_weight, backend=fused,
        )  # fmt: skip


def test_compiled_whole(fused: str) -> None:
    """torch.compile(fullgraph=True) gives what eager gives, forward and backward."""
    net, x = network(fused), points(64, 19)
    torch._dynamo.reset()
    compiled = torch.compile(net, fullgraph=True)
    for got, want in zip(step(compiled, x), step(net, x), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_strides_change_nothing(fused: str, dtype: torch.dtype) -> None:
    """Feature-major, sliced and expanded inputs give the bits of their contiguous copies."""
    net, x = network(fused, dtype=dtype), points(257, 38, dtype=dtype)
    views = [x[:, :19].t().contiguous().t(), x[::2, 1:20], x[:, ::2], x[:1, :19].expand(100, -1)]
    for view in views:
        assert not view.is_contiguous()
        assert same(step(net, view), step(net, view.contiguous()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_under_load(fused: str, dtype: torch.dtype) -> None:
    """The same inputs give the same bits while another stream keeps the GPU busy."""
    needs_dtype(fused, dtype)
    net, x = network(fused, (64, 200, 33), dtype=dtype), points(4001, 64, dtype=dtype)
    want = step(net, x)
    busy, a = torch.cuda.Stream(), torch.randn(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(busy):
            for _ in range(4):
                a = torch.tanh(a @ a)
        assert same(step(net, x), want)


def free_memory() -> int:
    return torch.cuda.mem_get_info()[0] if HAVE_GPU else 0


ROWS = 2**28 + 3  # with 8 columns, more than 2^31 elements


def needs(gib: int) -> None:
    if free_memory() < gib << 30:
        pytest.skip(f"needs {gib} GiB free on the GPU, has {free_memory() >> 30}")


def narrow_layer(backend: str, widths: tuple[int, int]) -> KANLinear:
    torch.manual_seed(1)
    return KANLinear(*widths, grid_size=2, spline_order=1, base=None, backend=backend, device="cuda",
                     dtype=torch.bfloat16)  # fmt: skip


def test_output_past_32_bits(fused: str) -> None:
    """y with more than 2^31 elements: the last rows are those computed alone."""
    needs(12)
    layer = narrow_layer(fused, (1, 8))
    x = torch.linspace(-1, 0.99, 1024, device="cuda").to(torch.bfloat16).repeat(ROWS // 1024 + 1)[:ROWS, None]
    with torch.no_grad():
        y = layer(x)
        assert y.numel() > 2**31 and torch.equal(y[-2:], layer(x[-2:]))
        assert torch.equal(y[:2], layer(x[:2])) and bool(y[-2:].any())


def test_input_past_32_bits(fused: str) -> None:
    """x and its gradient with more than 2^31 elements."""
    needs(28)
    layer = narrow_layer(fused, (8, 1))
    x = torch.zeros(ROWS, 8, device="cuda", dtype=torch.bfloat16)
    x[-2:] = torch.linspace(-0.9, 0.9, 16, device="cuda").view(2, 8).to(x.dtype)
    last = x[-2:].clone().requires_grad_()
    x.requires_grad_()
    layer.requires_grad_(False)
    y, y_last = layer(x), layer(last)
    assert x.numel() > 2**31 and torch.equal(y[-2:], y_last)
    y.backward(torch.ones_like(y))
    y_last.backward(torch.ones_like(y_last))
    assert x.grad is not None and last.grad is not None
    assert torch.equal(x.grad[-2:], last.grad) and bool(last.grad.any())
