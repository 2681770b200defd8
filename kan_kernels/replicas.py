"""What the ranks of a process group decide together, so that replicas of a model stay replicas.

Whatever looks at data and then changes a model must see the rows of all ranks, or replicas drift apart
without a word. Which ranks hold replicas is nothing that a model knows, and a collective that some never
enter hangs: so the caller says it by `group`, and where several ranks run and nobody did, that is an error.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .nn import KANLinear

LOCAL = "local"
Group = Any  # a ProcessGroup, "local" or None: torch builds without distributed have no such class
_Result = TypeVar("_Result")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module in a DistributedDataParallel, also in one that is compiled, or the model itself."""
    wrapper = getattr(model, "_orig_mod", model)
    return wrapper.module if isinstance(wrapper, nn.parallel.DistributedDataParallel) else model


def resolve(model: nn.Module, group: Group) -> Group:
    """Return the process group whose ranks hold replicas, or None for this process alone.

    Raises:
        TypeError, ValueError: several ranks run and `group` is None, or it is none that this rank is in.
    """
    running = dist.is_available() and dist.is_initialized()
    expected = (
        "the process group whose ranks all hold this model and all make this call, such as "
        "torch.distributed.group.WORLD, or 'local' for the model and the rows of this rank alone"
    )
    if isinstance(group, str):
        if group != LOCAL:
            raise ValueError(f"group: got {group!r}, expected {expected}")
        if running and dist.get_world_size() > 1 and (unwrapped(model) is not model or is_sharded(model)):
            raise ValueError(
                "group: got 'local' for a model that is spread over ranks, expected its group or None"
            )
        return None
    if group is None:
        if unwrapped(model) is not model:
            group = model.process_group  # of the DistributedDataParallel
        elif is_sharded(model):
            group = _mesh_group(model)
            if group is None:
                return None
        elif not running or dist.get_world_size() == 1:
            return None
        else:
            raise ValueError(
                f"group: got None beside {dist.get_world_size()} running ranks, expected {expected}"
            )
    elif not running or not isinstance(group, dist.ProcessGroup):
        raise TypeError(f"group: got {group!r}, expected {expected}")
    if dist.get_rank(group) < 0:
        raise ValueError(f"group: this rank is not in it, expected {expected}")
    return group if dist.get_world_size(group) > 1 else None


def shared(
    ranks: Group, model: nn.Module, settings: Any, compute: Callable[..., _Result], *data: Any
) -> _Result:
    """Return compute(*data), or on several ranks compute(*their rows, rank after rank), the same everywhere.

    The first rank computes, and the others get what it found, to the last bit, or its error. A rank may have
    no rows. Models or settings that differ between the ranks are an error on all of them: no rank hangs.

    Args:
        ranks: what `resolve` gave.
        model: must have the same values on all of them.
        settings: what else the result depends on.
        data: tensors (..., features).
    """
    if ranks is None:
        return compute(*data)
    size, first = dist.get_world_size(ranks), dist.get_global_rank(ranks, 0)
    mine = (_fingerprint(model, settings), [v.detach().cpu() if isinstance(v, Tensor) else v for v in data])
    seen: list[Any] | None = [None] * size if dist.get_rank(ranks) == 0 else None
    dist.gather_object(mine, seen, dst=first, group=ranks)
    answer: list[Any] = [None]
    if seen is not None:
        try:
            answer = [(compute(*_joined(seen, data)), None)]
        except Exception as error:  # every rank has to hear of it, or the others wait for ever
            kind = next(k for k in (TypeError, ValueError, Exception) if isinstance(error, k))
            answer = [(None, (kind if kind is not Exception else RuntimeError, str(error)))]
    dist.broadcast_object_list(answer, src=first, group=ranks)
    result, failure = answer[0]
    if failure is not None:
        raise failure[0](failure[1])
    return result


def everywhere(model: nn.Module, compute: Callable[[], _Result]) -> _Result:
    """Return compute(); where ranks hold parts of the model's layers, only if all of them find the same.

    Raises:
        ValueError: they do not, as where ranks that share layers were given rows of their own.
    """
    if not is_sharded(model):
        return compute()
    result, failure = None, None
    try:
        result = compute()
    except Exception as error:  # the others have to hear of it, or they wait for ever
        failure = error
    found = hashlib.sha256(_bytes(result)).hexdigest() if failure is None else f"an error, {failure}"
    seen, mesh = [found], _mesh(model)
    for n in range(mesh.ndim):
        every: list[Any] = [None] * mesh.size(n)
        dist.all_gather_object(every, seen, group=mesh.get_group(n))
        seen = [one for part in every for one in part]
    if failure is not None:
        raise failure
    for other in seen:
        if other != found:
            said = other if other.startswith("an error") else "other values"
            raise ValueError(
                f"x: another rank, which holds parts of the same layers, found {said}; expected the same "
                "rows on all of them, or the group of those ranks that have rows of their own"
            )
    return result  # type: ignore[return-value]


def mean(group: Group, values: list[float]) -> list[float]:
    """Return means over the ranks of a resolved group; the values themselves without one."""
    if group is None or not values:
        return values
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, values, group=group)
    return [sum(column) / len(every) for column in zip(*every, strict=True)]


def leads(group: Group) -> bool:
    """Return whether this rank is the first of a resolved group, or alone."""
    return group is None or dist.get_rank(group) == 0


def is_sharded(model: nn.Module) -> bool:
    """Return whether parameters are spread over ranks, as by fully_shard."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    modules = [model, *model.modules()]
    return any(isinstance(m, FSDPModule) for m in modules) or any(
        isinstance(p, DTensor) for p in model.parameters()
    )


def is_wrapped(model: nn.Module) -> bool:
    """Return whether a DistributedDataParallel or fully_shard holds the parameters, of these very shapes."""
    if unwrapped(model) is not model:
        return True
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in [model, *model.modules()])


def wraps_inside(model: nn.Module) -> bool:
    """Return whether a part of the model is in a DistributedDataParallel: gradients are those of all ranks.

    Raises:
        TypeError: it is in a FullyShardedDataParallel, whose parameters have no shapes.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise TypeError("model: got a FullyShardedDataParallel, expected fully_shard in its place")
    return any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules())


def is_spread(model: nn.Module) -> bool:
    """Return whether parameters are spread over several ranks."""
    return is_sharded(model) and dist.get_world_size() > 1


def full(value: Tensor) -> Tensor:
    """Return a tensor, or the whole of a DTensor: every rank takes part."""
    gathered: Any = getattr(value, "full_tensor", None)
    return value if gathered is None else gathered()


def whole(model: nn.Module, layers: list[KANLinear]) -> list[KANLinear]:
    """Return the layers, or copies with whole parameters where these are sharded: every rank takes part."""
    if not is_sharded(model):
        return layers
    from torch.distributed.fsdp import FSDPModule

    for module in [model, *model.modules()]:
        if isinstance(module, FSDPModule):
            module.reshard()  # what is written to parameters that a forward left whole would be lost
    copies = []
    for layer in layers:
        copy = KANLinear(
            layer.in_features, layer.out_features, layer.grid_size, layer.spline_order,
            grid_range=layer.grid_range, base=layer.base, bias=layer.bias is not None, backend=layer.backend,
            device=layer.spline_weight.device, dtype=layer.spline_weight.dtype,
        )  # fmt: skip
        copy.load_state_dict({key: full(value) for key, value in layer.state_dict().items()})
        copies.append(copy)
    return copies


def by_parts(weight: Tensor, functions: int, compute: Callable[..., Tensor], *knots: Tensor) -> Tensor:
    """Return compute(weight, *knots), (in, functions, out) float64; of a DTensor each rank its own edges.

    Args:
        weight: (in, R, out), of which every edge is computed by itself.
        functions: how many of an edge the result has.
        compute: takes the weights of some edges in float64, and the knots of their inputs.
        knots: (in, ...), whole on every rank.
    """
    if not hasattr(weight, "to_local"):
        return compute(weight.double(), *knots)
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(weight, DTensor)
    mesh, whole = weight.device_mesh, [Replicate()] * weight.device_mesh.ndim
    edges = [p if p.is_shard(0) or p.is_shard(2) else Replicate() for p in weight.placements]
    mine = weight.redistribute(placements=edges).to_local().double()
    numbers = DTensor.from_local(torch.arange(len(weight), device=mine.device), mesh, whole, run_check=False)
    inputs = numbers.redistribute(placements=[p if p.is_shard(0) else Replicate() for p in edges]).to_local()
    made = mine.new_empty(len(mine), functions, mine.shape[2])
    if made.numel():  # where ranks do not divide the features some have none
        made = compute(mine, *(rows[inputs] for rows in knots))
    shape = torch.Size([weight.shape[0], functions, weight.shape[2]])
    stride = (shape[1] * shape[2], shape[2], 1)
    return DTensor.from_local(made, mesh, edges, run_check=False, shape=shape, stride=stride)


def write(target: Tensor, values: Tensor) -> None:
    """Copy whole values, the same on every rank, or a DTensor, to a tensor or to this rank's part of one."""
    if dist.is_available() and dist.is_initialized():
        from torch.distributed.tensor import DTensor, Replicate

        if isinstance(target, DTensor):
            mesh = target.device_mesh
            if not isinstance(values, DTensor):
                local = values.to(target.device, target.dtype)
                values = DTensor.from_local(local, mesh, [Replicate()] * mesh.ndim, run_check=False)
            # by parts: with more ranks than rows torch has no rule for the whole
            target.to_local().copy_(values.redistribute(mesh, target.placements).to_local())
            return
    target.copy_(values)


def _mesh_group(model: nn.Module) -> Group:
    """Return the group of the ranks that have rows of their own, those of fully_shard.

    None where `parallelize_module` alone spread the parameters: then all ranks have the same rows.
    """
    from torch.distributed.fsdp import FSDPModule

    wrapped = [module for module in [model, *model.modules()] if isinstance(module, FSDPModule)]
    for module in wrapped:
        module.reshard()
    mesh = _mesh(model)
    if not wrapped:
        return None
    if mesh.ndim > 1:
        raise ValueError(
            "group: got None for parameters on a mesh of several dimensions, expected the group of the ranks "
            "that have rows of their own, such as mesh['data'].get_group()"
        )
    return mesh.get_group()


def _mesh(model: nn.Module) -> Any:
    """Return the mesh of the parameters, of several that with the most dimensions."""
    from torch.distributed.tensor import DTensor

    meshes = [p.device_mesh for p in model.parameters() if isinstance(p, DTensor)]
    return max(meshes, key=lambda mesh: mesh.ndim)


def _fingerprint(model: nn.Module, settings: Any) -> tuple[str, str]:
    """Return a hash of the values of a model, and the settings."""
    digest = hashlib.sha256()
    for name, value in unwrapped(model).state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(_bytes(value))
    return digest.hexdigest(), repr(settings)


def _bytes(values: Any) -> bytes:
    """Return the bits of a tensor, or of several in lists and tuples."""
    if isinstance(values, Tensor):
        return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return b"none" if values is None else b"".join(map(_bytes, values))


def _joined(seen: list[Any], own: tuple[Any, ...]) -> list[Any]:
    """Join the data of all ranks, rows after rows, on the device of this rank's."""
    for rank, ((values, settings), data) in enumerate(seen):
        if values != seen[0][0][0]:
            raise ValueError(
                f"model: rank {rank} of the group has other values than rank 0, expected replicas"
            )
        if settings != seen[0][0][1]:
            raise ValueError(f"rank {rank} of the group asks for {settings}, rank 0 for {seen[0][0][1]}")
        for value, reference in zip(data, seen[0][1], strict=True):
            if isinstance(value, Tensor) != isinstance(reference, Tensor):
                raise TypeError(
                    f"x: got {type(value).__name__} on rank {rank}, expected a tensor on every rank"
                )
            if isinstance(value, Tensor) and (
                value.dim() < max(1, _leading(data))
                or value.dtype != reference.dtype
                or _row(value, data) != _row(reference, seen[0][1])
            ):
                raise ValueError(
                    f"x: got {value.dtype} of shape {tuple(value.shape)} on rank {rank}, beside "
                    f"{reference.dtype} of shape {tuple(reference.shape)} on rank 0, expected alike rows"
                )
    columns = zip(*([_rows(value, data) for value in data] for _, data in seen), strict=True)
    return [
        torch.cat(parts).to(mine.device) if isinstance(mine, Tensor) else mine
        for parts, mine in zip(columns, own, strict=True)
    ]


def _leading(data: Sequence[Any]) -> int:
    """Return how many dimensions of a rank's data, x (..., in) the first of them, are rows."""
    return next((value.dim() for value in data if isinstance(value, Tensor)), 1) - 1


def _row(value: Tensor, data: Sequence[Any]) -> torch.Size:
    """Return the shape of a row of one of the data: of x (in,), of y (out,), or () of classes."""
    return value.shape[_leading(data) :]


def _rows(value: Any, data: Sequence[Any]) -> Any:
    """Return one of the data with its rows in one dimension; what is no tensor as it is."""
    if not isinstance(value, Tensor):
        return value
    leading = _leading(data)
    return value.flatten(0, leading - 1) if leading > 0 else value[None]
