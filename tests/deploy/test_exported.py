"""Models that leave Python: ONNX in onnxruntime, torch.export and AOTInductor in a C++ program."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness import FUSED
from kan_kernels import (
    KAN,
    KANActivation,
    KANConv1d,
    KANConv2d,
    KANConv3d,
    KANLinear,
    MultiHeadKANLinear,
    deploy,
    symbolic,
    use_backend,
)
from kan_kernels.integrations import cheby_kan, efficient_kan, fast_kan, fourier_kan

NATIVE = pytest.mark.skipif("native" not in FUSED, reason="native is not among KAN_TEST_BACKENDS")
BATCH = torch.export.Dim("batch")


def masked() -> KANLinear:
    layer = KANLinear(3, 4, bias=True)
    layer.set_edge_mask(torch.ones(3, 4).tril())
    symbolic.fix(layer, 1, 0, "sin", params=(1.0, 0.5, 2.0, 0.0))
    return layer


def images() -> nn.Module:
    first = KANConv2d(2, 4, 3, padding="same", groups=2, bias=True)
    return nn.Sequential(first, KANConv2d(4, 3, (2, 3), stride=2, dilation=(1, 2), base=None))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "KAN": (lambda: KAN([3, 5, 2], bias=True), (3,)),
    "float64, no base": (lambda: KAN([3, 4], base=None, dtype=torch.float64), (3,)),
    "mask and formula": (masked, (3,)),
    "heads": (lambda: MultiHeadKANLinear(3, 4, heads=2, bias=True), (3,)),
    "conv1d": (lambda: KANConv1d(2, 3, 4, padding="same"), (2, 9)),
    "conv2d": (images, (2, 9, 8)),
    "conv3d": (lambda: KANConv3d(2, 3, 2, padding=1, base="identity"), (2, 4, 3, 5)),
    "efficient-kan": (lambda: efficient_kan.KAN([3, 4, 2]), (3,)),
    "FastKAN": (lambda: fast_kan.FastKAN([3, 4, 2]), (3,)),
    "ChebyKAN": (lambda: cheby_kan.ChebyKANLayer(3, 2, 4), (3,)),
    "FourierKAN": (lambda: fourier_kan.NaiveFourierKANLayer(3, 2, 4), (3,)),
}


FIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "KAN": (lambda: KAN([3, 5, 2], backend="native"), (3,), "kan_linear of 3 -> 5"),
    "KANLinear": (lambda: nn.Sequential(KANLinear(3, 4, backend="native")), (3,), "kan_linear of 3 -> 4"),
    "KANConv2d": (lambda: KANConv2d(2, 3, 3, backend="native"), (2, 5, 5), "kan_conv of 2 -> 27"),
    "KANActivation": (lambda: KANActivation(3, backend="native"), (3,), "kan_activation of 3 -> 1"),
}


def sample(model: nn.Module, shape: tuple[int, ...], batch: int) -> Tensor:
    """Return rows with a NaN, where there are several, and values beyond the knots."""
    x = torch.randn(batch, *shape, dtype=next(model.parameters()).dtype) * 1.5
    if batch > 1:
        x[1].view(-1)[0] = torch.nan
    return x


def compare(model: nn.Module, shape: tuple[int, ...], run: Callable[[Tensor], Any]) -> None:
    for batch in (1, 4, 33):
        x = sample(model, shape, batch)
        want = model(x).detach()
        torch.testing.assert_close(torch.as_tensor(run(x)), want, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_onnx(name: str) -> None:
    """The automatic choice exports to plain operators, with any batch size; onnxruntime computes the same."""
    pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript, a test extra")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a test extra")
    model, shape = MODELS[name][0]().eval(), MODELS[name][1]
    given, dynamic = (sample(model, shape, 5),), ({0: BATCH},)
    program = torch.onnx.export(model, given, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = runtime.InferenceSession(program.model_proto.SerializeToString())  # type: ignore[union-attr]
    compare(model, shape, lambda x: session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


# the traced graph of a composed convolution is that of one image size, of a KAN on its own half a second
@pytest.mark.parametrize(
    "name", ["KAN", *(pytest.param(name, marks=pytest.mark.long) for name in MODELS if name != "KAN")]
)
def test_onnx_of_a_trace(name: str, tmp_path: Path) -> None:
    """The exporter without dynamo gets plain operators too, and the backend is chosen anew after it."""
    pytest.importorskip("onnx", reason="torch.onnx needs onnx, a test extra")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is a test extra")
    model, shape = MODELS[name][0]().eval(), MODELS[name][1]
    x, path = sample(model, shape, 5), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of its old exporter
        torch.onnx.export(
            model, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}}
        )
    session = runtime.InferenceSession(path)
    compare(model, shape, lambda x: session.run(None, {"x": x.numpy()})[0])
    if "native" in FUSED:
        x = sample(model, shape, 5)
        with use_backend("native"):
            want = model(x)
        torch.testing.assert_close(model(x), want, rtol=0, atol=0, equal_nan=True)


@NATIVE
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", FIXED)
def test_onnx_of_a_fixed_backend(name: str, dynamo: bool, tmp_path: Path) -> None:
    """A layer whose `backend` is a fused one is an error with its sizes and the way out."""
    if dynamo:
        pytest.importorskip("onnxscript", reason="torch.onnx needs onnxscript, a test extra")
    model, shape, what = FIXED[name]
    match = rf"backend 'native', asked for by backend= for {what}: ONNX has no operator .* backend=None"
    with pytest.raises(Exception, match=match), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model().eval(), (torch.randn(5, *shape),), tmp_path / "m.onnx", dynamo=dynamo, verbose=False
        )
    assert not list(tmp_path.iterdir())


@NATIVE
@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_decompositions(name: str) -> None:
    """An exported program holds our ops whole; taken apart it has none, and the same numbers."""
    model, shape = MODELS[name][0]().eval(), MODELS[name][1]
    program = torch.export.export(model, (sample(model, shape, 5),), dynamic_shapes=({0: BATCH},))
    assert ours(program) and ours(program.run_decompositions())
    compare(model, shape, program.module())
    plain = program.run_decompositions(torch.export.default_decompositions() | deploy.decompositions())
    assert not ours(plain)
    compare(model, shape, plain.module())


def ours(program: torch.export.ExportedProgram) -> list[str]:
    return [str(n.target) for n in program.graph.nodes if str(n.target).startswith("kan_kernels")]


@NATIVE
@pytest.mark.parametrize("op", ["kan_network", "kan_network of products", "kan_conv", "layer_norm_rbf"])
def test_decompositions_are_the_ops(op: str) -> None:
    """Called on tensors, each gives what its op gives, second results and memory format included."""
    table = deploy.decompositions()
    call = getattr(torch.ops.kan_kernels, op.partition(" ")[0]).default
    torch.manual_seed(0)
    if op.startswith("kan_network"):
        multiplied = [2, 1, 2, 0, 2, 2, 3, 2, 0] if "products" in op else []
        widths = [3, (2, 1), (0, 2), 2] if multiplied else [3, 5, 4, 2]
        model = KAN(widths, bias=True, mult_arity=[[], 2, [2, 3], []] if multiplied else 2)
        kinds = ("spline_weight", "base_weight", "bias", "grid")
        tensors = [getattr(layer, kind).detach() for kind in kinds for layer in model.layers]
        arguments: tuple[Any, ...] = (torch.randn(7, 3), tensors, 3, 3, 1, multiplied)
    elif op == "kan_conv":
        layer = KANConv2d(4, 6, (2, 3), groups=2, bias=True)
        x = torch.randn(2, 4, 6, 7).to(memory_format=torch.channels_last)
        weights = [t.detach() for t in (layer.spline_weight, layer.base_weight, layer.bias)]
        arguments = (x, *weights, layer.grid, 3, 1, [2, 1], [0, 1, 2, 2], [1, 2], 2, True)
    else:
        grid = torch.cat((torch.linspace(-2, 2, 8), torch.tensor([0.5]))).repeat(3, 1)
        weights = [torch.randn(shape) for shape in ((3,), (3,), (4, 24), (4, 3), (4,))]
        arguments = (torch.randn(7, 3), *weights, grid, 1e-5, 1)
    got, want = table[call](*arguments), call(*arguments)
    for one, other in zip(*(v if isinstance(v, (list, tuple)) else [v] for v in (got, want)), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
        assert one.stride() == other.stride()


PROGRAM = """
#include <ATen/ops/empty.h>
#include <dlfcn.h>
#include <fstream>
#include <iostream>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

int main(int, char** argv) {
  if (!dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL)) {  // registers the ops
    std::cerr << dlerror() << std::endl;
    return 1;
  }
  torch::inductor::AOTIModelPackageLoader model(argv[2]);
  const long rows = std::stol(argv[4]), width = std::stol(argv[5]);
  at::Tensor x = at::empty({rows, width});
  std::ifstream(argv[3], std::ios::binary).read(static_cast<char*>(x.data_ptr()), x.nbytes());
  at::Tensor y = model.run({x})[0].contiguous();
  std::cout.write(static_cast<char*>(y.data_ptr()), y.nbytes());
}
"""


@NATIVE
@pytest.mark.long
def test_aot_inductor_in_a_program(tmp_path: Path) -> None:
    """A program without Python loads the op library and the package, and runs them at any batch size."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler `g++` on the path")
    import torch._inductor
    from torch.utils.cpp_extension import include_paths, library_paths

    model = nn.Sequential(KAN([3, 8, 4], bias=True), nn.Tanh(), KANLinear(4, 2)).eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(8, 3),), dynamic_shapes=({0: BATCH},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    (tmp_path / "main.cpp").write_text(PROGRAM)
    libraries = library_paths()
    abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
    command = [compiler, "-std=c++20", "-O0", abi, "-o", "main", "main.cpp"]
    command += [f"-I{path}" for path in include_paths()]
    command += [f"-L{path}" for path in libraries] + [f"-Wl,-rpath,{path}" for path in libraries]
    command += ["-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    for batch in (1, 8, 100):
        x = torch.randn(batch, 3)
        x.numpy().tofile(tmp_path / "x.bin")
        arguments = ["./main", str(deploy.op_library()), package, "x.bin", str(batch), "3"]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        got = torch.from_numpy(np.frombuffer(done.stdout, np.float32).reshape(batch, 2).copy())
        torch.testing.assert_close(got, model(x).detach(), rtol=1e-6, atol=1e-6)
    arguments[1] = str(tmp_path / "nothing.so")
    assert subprocess.run(arguments, cwd=tmp_path, capture_output=True).returncode == 1
