"""The Triton backend as this machine sees it, with or without Triton or a GPU: reasons, imports, choices."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from harness import child
from kan_kernels import KAN, KANLinear, available_backends, explain
from kan_kernels._core import library
from kan_kernels._core.problem import Problem
from kan_kernels._engine import dispatch
from kan_kernels.backends import BACKENDS

TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not TRITON, reason="Triton is not installed")
on_the_cpu = pytest.mark.skipif(
    torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ, reason="Triton's kernels can run here"
)


def situation(device: str = "cuda", **changes: object) -> Problem:
    facts = {
        "device": device, "dtype": torch.float32, "x_dtype": torch.float32, "in_features": 64,
        "out_features": 64, "functions": 8, "order": 3,
    }  # fmt: skip
    return Problem(**{**facts, **changes})  # type: ignore[arg-type]


@needs_triton
@on_the_cpu
def test_the_reason_is_the_error() -> None:
    """A CPU tensor outside the interpreter: one sentence from the list, from explain and as the error."""
    reason = available_backends()["triton"]
    assert reason is not None and "GPU" in reason and "TRITON_INTERPRET" in reason
    with pytest.raises(RuntimeError, match="GPU") as caught:
        KANLinear(3, 4, backend="triton")(torch.rand(2, 3))
    assert reason in str(caught.value) and reason in explain((3, 4), backend="triton")
    nothing = str(BACKENDS["triton"].can_run(situation()))
    assert "no GPU" in nothing and ("install" in nothing or "update" in nothing)
    assert "mps" in BACKENDS["triton"].can_run(situation("mps"))


@needs_triton
def test_a_gpu_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA tensors the choice falls on Triton, for a reason that names the kernels, without a warning."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(BACKENDS["native"], "can_run", lambda case: "no CUDA kernels in this wheel")
    for changes, words in (
        ({"dtype": torch.bfloat16}, "16-bit operands on matrix units"),
        ({}, "tf32x3 operands on matrix units"),
        ({"functions": 203}, "gathered: 64 outputs, 203 basis rows"),
        ({"out_features": 5}, "gathered: 5 outputs"),
        ({"dtype": torch.float64}, "float64 has no matrix kernel"),
        ({"basis": "rbf", "functions": 200, "order": 0}, "tf32x3 operands on matrix units"),
        ({"basis": "chebyshev", "functions": 41, "order": 0}, "tf32x3 operands on matrix units"),
        ({"op": "kan_activation"}, "each x looks up the polynomial of its cell"),
        ({"op": "kan_activation", "order": 5}, "the basis is evaluated in place"),
        ({"op": "kan_activation", "dtype": torch.float64}, "gradients summed row by row"),
    ):
        choice = dispatch.choose(situation(**changes))
        assert choice.backend.NAME == "triton" and words in choice.why, choice.why
        assert choice.passed_over == {"native": "no CUDA kernels in this wheel"}
    monkeypatch.setattr(dispatch, "_warned", set())
    dispatch.run_on(situation())
    assert not dispatch._warned
    for changes, words in (
        ({"dtype": torch.float8_e4m3fn}, "float8"),
        ({"order": 11}, "11"),
        ({"derivative": 40}, "40"),
        ({"basis": "rbf", "functions": 257, "order": 0}, "257 functions"),
    ):
        assert words in BACKENDS["triton"].can_run(situation(**changes))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    assert "7.5, below 8.0; use" in BACKENDS["triton"].can_run(situation())


@needs_triton
@pytest.mark.skipif(
    "cuda" not in library.DEVICES, reason="the library was built without CUDA kernels: there was no nvcc"
)
def test_the_cheaper_backend_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where both fused backends can run, the cost model decides, in figures; either can be forced."""
    wide = {"in_features": 512, "out_features": 512}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(BACKENDS["native"], "can_run", lambda case: None)
    monkeypatch.setattr(BACKENDS["triton"], "can_run", lambda case: None)
    for changes, chosen in (
        ({**wide, "dtype": torch.bfloat16}, "triton"),  # warp-group products
        ({"out_features": 5}, "native"),  # narrow
        ({"functions": 203}, "native"),  # a long grid
        ({"dtype": torch.float64}, "native"),
        (
            {**wide, "basis": "rbf", "functions": 5, "order": 0, "dtype": torch.bfloat16},
            "triton",
        ),  # more outputs share a value
        ({"basis": "rbf", "functions": 5, "order": 0, "out_features": 5}, "native"),
        ({"basis": "chebyshev", "functions": 4, "order": 0, "dtype": torch.float64}, "native"),
        (
            {"basis": "chebyshev", "functions": 4, "order": 0, "dtype": torch.float16, "derivative": 2},
            "native",
        ),
    ):
        choice = dispatch.choose(situation(**{"rows": 8192, "training": True, **changes}))
        assert chosen == choice.backend.NAME and "us a training step" in choice.why, str(choice)
        assert all("us a training step" in reason for reason in choice.passed_over.values())
        assert dispatch.choose(situation(**changes), "native").backend.NAME == "native"


@needs_triton
@pytest.mark.skipif("cuda" not in library.DEVICES, reason="built without CUDA kernels: there was no nvcc")
def test_the_choice_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile(fullgraph=True) goes through the automatic choice between two GPU backends."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    for name in ("native", "triton"):
        monkeypatch.setattr(BACKENDS[name], "can_run", lambda case: None)

    def chosen(x: torch.Tensor) -> torch.Tensor:
        name = dispatch.run_on(situation(out_features=5))[0].NAME
        return x + (1 if name == "native" else 2)

    compiled = torch.compile(chosen, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1)).item() == chosen(torch.zeros(1)).item() == 1


WITHOUT = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch, kan_kernels
from kan_kernels import KAN, available_backends, explain
reason = available_backends()["triton"]
assert reason == "Triton is not installed (pip install triton)", reason
net = KAN([3, 5, 2])
net(torch.rand(4, 3)).sum().backward()
try:
    KAN([3, 5, 2], backend="triton")(torch.rand(4, 3))
except RuntimeError as error:
    assert reason in str(error)
else:
    raise SystemExit("triton ran without Triton")
compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
compiled(torch.rand(4, 3))
"""


@pytest.mark.long  # a process of its own that compiles
def test_everything_else_works_without_triton() -> None:
    """Layers, training, torch.compile; the reason says what to install."""
    child(WITHOUT)


def test_schemas_are_those_of_the_library() -> None:
    """One family: what Python declares for its namespaces is what C++ declares, word for word."""
    if library.LOAD_ERROR is not None:
        pytest.skip(f"the compiled library is not here: {library.LOAD_ERROR}")
    for op, schema in library.SCHEMAS.items():
        theirs = str(getattr(torch.ops.kan_kernels, op).default._schema)
        assert theirs == f"kan_kernels::{op}{schema}"


def test_a_network_says_why() -> None:
    """explain names the backend and the reason for every layer."""
    text = explain(KAN([3, 5, 2]))
    assert text.count("automatic choice") == 2 and ("fastest" in text or "plain torch" in text)
