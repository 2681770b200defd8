"""A taken layer in the rest of torch: copies, files, parametrizations, transforms, compile, processes."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import peer_efficient_kan as peer
from harness import child
from kan_kernels.integrations import accelerate, is_accelerated, restore


def copies(model: nn.Module) -> dict[str, nn.Module]:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return {
        "deepcopy": copy.deepcopy(model),
        "copy": copy.copy(model),
        "pickle": pickle.loads(pickle.dumps(model)),
        "torch.save": torch.load(file, weights_only=False),
    }


def test_copies_and_pickles() -> None:
    """They are accelerated too, compute the same, and can be restored on their own."""
    model = peer.KAN([3, 4, 2])
    accelerate(model)
    x = torch.randn(6, 3)
    for name, other in copies(model).items():
        assert torch.equal(other(x), model(x)), name
        assert all(map(is_accelerated, other.layers)), name
        assert type(other.layers[0]) is type(model.layers[0]), name
    other = copies(model)["deepcopy"]
    assert len(restore(other).taken) == 2
    assert all(map(is_accelerated, model.layers)) and not any(map(is_accelerated, other.layers))


def test_unpickled_in_another_process(tmp_path: Any) -> None:
    """A saved accelerated model is accelerated where it is loaded, without a call of accelerate."""
    model = peer.KAN([3, 4, 2])
    accelerate(model)
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(4, 3)
    torch.save((x, model(x)), tmp_path / "xy.pt")
    text = child(f"""
import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
x, y = torch.load({str(tmp_path / "xy.pt")!r})
assert torch.equal(model(x), y)
print(type(model.layers[0]).__name__)
""")
    assert "AcceleratedKANLinear" in text


def test_parametrized_afterwards() -> None:
    """Weight norm on an accelerated layer works; restore waits until it is removed."""
    layer = peer.KANLinear(3, 2)
    accelerate(layer)
    x = torch.randn(5, 3)
    want = layer(x)
    parametrizations.weight_norm(layer, "base_weight")
    torch.testing.assert_close(layer(x), want)
    report = restore(layer)
    assert not report.taken and "undo that first" in report.left[0].why
    nn.utils.parametrize.remove_parametrizations(layer, "base_weight")
    assert is_accelerated(layer) and len(restore(layer).taken) == 1
    assert type(layer) is peer.KANLinear


def test_functional_transforms() -> None:
    """torch.func: per-sample gradients of an accelerated model equal the peer's."""
    own = peer.KAN([3, 4, 2]).double()
    fast = copy.deepcopy(own)
    accelerate(fast)
    x = torch.randn(5, 3, dtype=torch.float64)

    def per_sample(model: nn.Module) -> dict[str, Tensor]:
        def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
            return torch.func.functional_call(model, parameters, (row[None],)).square().sum()

        parameters = {name: p.detach() for name, p in model.named_parameters()}
        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)

    got, want = per_sample(fast), per_sample(own)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.long
def test_compile() -> None:
    """torch.compile of an accelerated model: no graph break, the same numbers and gradients."""
    own = peer.KAN([3, 4, 2]).double()
    fast = copy.deepcopy(own)
    accelerate(fast)
    torch._dynamo.reset()
    compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
    x = torch.randn(9, 3, dtype=torch.float64)
    got, want = compiled(x), own(x)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    got.sum().backward(), want.sum().backward()
    for a, b in zip(fast.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)
    model = torch.compile(copy.deepcopy(own), backend="aot_eager")
    assert [entry.name for entry in accelerate(model).taken] == ["_orig_mod.layers.0", "_orig_mod.layers.1"]
    torch.testing.assert_close(model(x), want, rtol=1e-10, atol=1e-10)


@pytest.mark.long
def test_distributed_data_parallel() -> None:
    """Two processes with half a batch each end with the gradients of the whole batch."""
    child(
        """
import os, torch, torch.distributed as dist, torch.multiprocessing as mp
import peer_efficient_kan as peer
from kan_kernels.integrations import accelerate

def run(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = peer.KAN([3, 4, 2]).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    model(x).square().mean().backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    assert len(accelerate(parallel).taken) == 2
    parallel(x[4 * rank : 4 * rank + 4]).square().mean().backward()
    for p, g in zip(model.parameters(), want):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-12)
    dist.destroy_process_group()

if __name__ == "__main__":
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(run, (port,), 2, start_method="fork")
"""
    )
