"""KAN: a stack of KANLinear layers, products between them, and the call that runs all layers at once."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from .._core import checks
from .._engine import network
from .linear import KANLinear, masked
from .products import Products, rows_of
from .spline_module import unchanged_by_errors

if TYPE_CHECKING:
    _Layer = TypeVar("_Layer", bound=nn.Module)

    class Layers(nn.ModuleList, Generic[_Layer]):
        """The type of `layers`, which is a plain nn.ModuleList: it knows what is in it."""

        @overload  # type: ignore[override]
        def __getitem__(self, index: int) -> _Layer: ...
        @overload
        def __getitem__(self, index: slice) -> "Layers[_Layer]": ...
        def __getitem__(self, index: Any) -> Any: ...
        def __iter__(self) -> Iterator[_Layer]: ...


class KAN(nn.Module):
    """A stack of KANLinear layers: KAN([2, 5, 1]) has two, in `layers`.

    Nodes may be products (KAN 2.0, arXiv 2408.10205): behind the first layer of KAN([2, (3, 2), 1]) lie 3
    sums and 2 products. That layer has 3 + 2 mult_arity outputs: the sums, then the factors of one product
    after the other. What multiplies them is in `products`, a `Products` for each layer, or None where there
    are none.
    A state dict that does not fit, in whatever layer, leaves all of them as they were.

    Args:
        widths: at least two, from the input's to the output's: positive sizes, or pairs (sums, products).
        grid_size, spline_order: as for KANLinear, the same for every layer or a sequence, one for each.
        mult_arity: how many outputs a product multiplies, >= 2; or, as in pykan, for each of `widths` an int
            or a list with one for each of its products: [[], [2, 3], []].
        layer_options: as for KANLinear, the same for every layer; `noise_scale` may be a sequence too.

    Raises:
        TypeError, ValueError: naming the argument.

    Example:
        >>> KAN([2, 5, 1])(torch.zeros(4, 2)).shape
        torch.Size([4, 1])
        >>> KAN([2, (3, 2), 1]).layers
        ModuleList(
          (0): KANLinear(2, 7, ...)
          (1): KANLinear(5, 1, ...)
        )
    """

    products: nn.ModuleList | None

    def __init__(
        self,
        widths: Sequence[int | tuple[int, int]],
        grid_size: int = 5,
        spline_order: int = 3,
        *,
        mult_arity: int | Sequence[int | Sequence[int]] = 2,
        **layer_options,
    ) -> None:
        super().__init__()
        rows = rows_of(widths, mult_arity)
        pairs = list(itertools.pairwise(rows))
        given = {"grid_size": grid_size, "spline_order": spline_order}
        given["noise_scale"] = layer_options.pop("noise_scale", None)
        own = {name: checks.of_layers(name, value, len(pairs)) for name, value in given.items()}
        self.layers = nn.ModuleList(
            KANLinear(
                before.nodes,
                after.subnodes,
                **{name: values[n] for name, values in own.items()},
                **layer_options,
            )
            for n, (before, after) in enumerate(pairs)
        )
        self.set_products(rows[1:])

    if TYPE_CHECKING:

        @property
        def layers(self) -> "Layers[KANLinear]": ...
        @layers.setter
        def layers(self, layers: nn.ModuleList) -> None: ...

    def set_products(self, products: Sequence[Products]) -> None:
        """Replace what multiplies the outputs of each layer.

        Args:
            products: one for each layer.

        Raises:
            ValueError: they do not fit the layers.
        """
        sizes = [layer.out_features for layer in self.layers]
        inner = [layer.in_features for layer in self.layers][1:]
        if [p.subnodes for p in products] != sizes or [p.nodes for p in products][:-1] != inner:
            raise ValueError(
                f"products: got {[(p.subnodes, p.nodes) for p in products]} subnodes and nodes, expected "
                f"{sizes} outputs of the layers and {inner} inputs of those behind them"
            )
        multiplied = any(p.arities for p in products)
        self.products = nn.ModuleList(products).train(self.training) if multiplied else None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Initialise every layer anew, as `KANLinear.reset_parameters` does."""
        for layer in self.layers:
            layer.reset_parameters(generator)

    def load_state_dict(self, state_dict, strict: bool = True, assign: bool = False):
        """Load as torch does; after an error every layer is as it was."""
        with unchanged_by_errors(self, state_dict):
            return super().load_state_dict(state_dict, strict, assign)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., widths[0]) to y (..., widths[-1]); of a pair of widths, sums first."""
        layers = gather(self)
        if not isinstance(layers, str) and not isinstance(backend := network.backend_of(x, layers), str):
            if torch.compiler.is_compiling():
                return network.call(x, layers, backend)
            try:
                return network.call(x, layers, backend)
            except RuntimeError:
                pass  # of knots and shapes the layers say more
        products: Any = self._modules.get("products")
        for n, layer in enumerate(self.layers):
            try:
                x = layer(x)
            except checks.GridError as error:
                raise checks.GridError(f"layers[{n}], {error}") from None
            if products is not None:
                x = products[n](x)
        return x

    def _dispatch_options(self) -> str:
        """Return whether one call runs all layers, for `explain`."""
        if type(self).forward is not KAN.forward or "forward" in self.__dict__:
            return "a forward of its own calls its layers"
        layers = gather(self)
        if not isinstance(layers, str):
            weight = layers.tensors[0]
            found = network.backend_of(weight.new_empty(0, weight.shape[0]), layers)
            if not isinstance(found, str):
                said = "kan_network runs all layers in one call, where x needs no gradient"
                counted = weight.is_cuda and found.NAME == "native"
                return said + (f" ({network.launches(layers)})" if counted else "")
            layers = found
        return f"its layers are called one by one: {layers}"


def drawn(generator: torch.Generator, *args: Any, **options: Any) -> KAN:
    """Return a KAN on the CPU whose first weights are from a generator: torch's own is not touched."""
    model = KAN(*args, **options, device="meta").to_empty(device="cpu")
    model.reset_parameters(generator)
    return model


_CALL, _FORWARD = KANLinear.__call__, KANLinear.forward


def gather(model: KAN, plain: bool = False) -> str | network.Layers:
    """Return what a call of all layers needs, or why the layers have to be called themselves.

    plain: the weights as they are, with the masks of their edges beside them.
    """
    if _hooked_everywhere():
        return "there are global hooks"
    if KANLinear.forward is not _FORWARD or KANLinear.__call__ is not _CALL:
        return "KANLinear.forward was replaced"
    products: Any = model._modules.get("products")
    multiplied: tuple[int, ...] = ()
    if products is not None:
        if not _plain(products):
            return "products is no plain list of Products"
        multiplied = tuple(n for p in products for n in (p.sums, len(p.arities), *p.arities))
    modules = model._modules.get("layers")  # without the detour of nn.Module.__getattr__
    if type(modules) is not nn.ModuleList:
        return "layers is no plain ModuleList"
    splines: list[Tensor] = []
    bases: list[Tensor] = []
    biases: list[Tensor] = []
    grids: list[Tensor] = []
    masks: list[Tensor | None] = []
    first: Any = None
    layer: Any
    parameters: Any
    buffers: Any
    for n, layer in enumerate(modules._modules.values()):
        if type(layer) is not KANLinear or "forward" in layer.__dict__:
            return f"layers[{n}] is no plain KANLinear"
        if layer._modules:
            return f"layers[{n}] has formulas"
        if hooked(layer):
            return f"layers[{n}] has hooks"
        try:
            parameters, buffers = layer._parameters, layer._buffers
            spline_weight, base_weight = parameters["spline_weight"], parameters["base_weight"]
            bias, grid, mask = parameters["bias"], buffers["grid"], buffers["edge_mask"]
        except KeyError:
            return f"layers[{n}] has other parameters"
        options = layer.spline_order, layer.base, layer.backend, base_weight is None, bias is None
        if first is None:
            first = options
        elif options != first:
            return f"layers[{n}] has other options than layers[0]"
        if mask is not None and not plain:
            spline_weight, base_weight = masked(spline_weight, base_weight, mask)
        masks.append(mask)
        splines.append(spline_weight)
        grids.append(grid)
        if base_weight is not None:
            bases.append(base_weight)
        if bias is not None:
            biases.append(bias)
    if first is None:
        return "there are no layers"
    order, base, backend, _, _ = first
    tensors = [*splines, *bases, *biases, *grids]
    beside = tuple(masks) if plain else ()
    return network.Layers(len(splines), tensors, order, base, backend, multiplied, beside)


_MULTIPLY_CALL, _MULTIPLY = Products.__call__, Products.forward


def _plain(products: Any) -> bool:
    """Return whether nothing but `Products` multiplies nodes."""
    if Products.__call__ is not _MULTIPLY_CALL or Products.forward is not _MULTIPLY:
        return False
    return type(products) is nn.ModuleList and all(
        type(p) is Products and "forward" not in p.__dict__ and not hooked(p) for p in products
    )


def hooked(m: nn.Module) -> bool:
    """Return whether something of somebody else's is called with the module."""
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


def _hooked_everywhere() -> bool:
    return bool(
        hooks._global_forward_hooks
        or hooks._global_forward_pre_hooks
        or hooks._global_backward_hooks
        or hooks._global_backward_pre_hooks
    )
