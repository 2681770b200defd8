"""A trained KAN without torch: NumPy arrays and the same CPU kernels, through the module _C.

This file imports neither torch nor anything that does. On a machine without torch, `import kan_kernels` still
offers it.
"""

import os
import zipfile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .._core.bases import BASE_CODES, REMEDY
from .._core.files import replacing


class _Layer(NamedTuple):
    """A layer, in the order of _C.forward's arguments after x."""

    spline_weight: NDArray  # (in, G+k, out)
    base_weight: NDArray | None  # (in, out)
    bias: NDArray | None  # (out,)
    grid: NDArray  # (in, G+2k+1)
    spline_order: int
    base: int


class NumpyKAN:
    """A stack of KAN layers on NumPy arrays: kan(x) maps (n, in) to (n, out).

    Made by `to_numpy_model`, or by `NumpyKAN.load` from a file that `save` wrote; pickles too.

    Args:
        layers: their arrays.
        arities: for each layer, how many of its outputs each node behind it multiplies, 1 for those that stay
            as they are; () where all do. None: of no layer.

    Attributes:
        dtype: of the arrays, float32 or float64.
        in_features, out_features: of the whole stack.

    Example:
        >>> to_numpy_model(KAN([2, 5, 1]))(np.zeros((4, 2))).shape
        (4, 1)
    """

    def __init__(self, layers: list[_Layer], arities: list[tuple[int, ...]] | None = None) -> None:
        self._layers = [_Layer(*layer) for layer in layers]
        self._arities = [()] * len(layers) if arities is None else [tuple(a) for a in arities]
        self.dtype = self._layers[0].spline_weight.dtype
        self.in_features = self._layers[0].spline_weight.shape[0]
        self.out_features = self._widths()[-1]
        self._forward = _kernel()

    def __call__(self, x: ArrayLike) -> NDArray:
        """Map x (n, in) to y (n, out), in `dtype`. Raise TypeError or ValueError for another x."""
        given = np.asarray(x)
        text = given.dtype.kind == "O" and any(
            isinstance(value, (str, bytes, complex)) for value in given.flat
        )
        if given.dtype.kind in "cSUMm" or text or isinstance(x, np.ma.MaskedArray):
            raise TypeError(f"x: got {type(x).__name__} of {given.dtype}, expected an array of real numbers")
        y = np.ascontiguousarray(given, self.dtype)
        if y.ndim != 2 or y.shape[1] != self.in_features:
            raise ValueError(f"x: got shape {np.shape(x)}, expected (n, {self.in_features})")
        forward = self._forward
        for layer, arities in zip(self._layers, self._arities, strict=True):
            y = forward(y, *layer)
            if arities:
                y = _multiplied(y, arities)
        return y

    def _widths(self) -> list[int]:
        outputs = zip(self._layers, self._arities, strict=True)
        return [self.in_features, *(len(a) or layer.spline_weight.shape[2] for layer, a in outputs)]

    def __repr__(self) -> str:
        return f"NumpyKAN({self._widths()}, {self.dtype})"

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": [tuple(layer) for layer in self._layers], "arities": self._arities}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["layers"], state.get("arities"))  # type: ignore[misc]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file for `load`, whole or not at all; it holds no pickle.

        As with numpy.savez, .npz is appended to a path without it.
        """
        products = any(self._arities)  # a reader that knows none must not take the file
        arrays: dict[str, Any] = {"format": 2 if products else 1, "layers": len(self._layers)}
        if products:
            arrays |= {f"{i}.arities": np.array(a, np.int64) for i, a in enumerate(self._arities)}
        for i, layer in enumerate(self._layers):
            for name, value in layer._asdict().items():
                if value is not None:
                    arrays[f"{i}.{name}"] = value
        name = os.fspath(path)
        with (
            replacing(name if name.endswith(".npz") else f"{name}.npz") as partial,
            partial.open("wb") as file,
        ):
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "NumpyKAN":
        """Read a file written by `save`. Raise ValueError for any other file."""
        foreign = f"path: {os.fspath(path)!r} is not a file that NumpyKAN.save wrote"
        try:
            arrays = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(foreign) from error
        if isinstance(arrays, np.ndarray):
            raise ValueError(foreign)
        with arrays:
            if "format" not in arrays or int(arrays["format"]) not in (1, 2):
                raise ValueError(foreign)
            count = range(int(arrays["layers"]))
            arities = [tuple(arrays.get(f"{i}.arities", np.array([], np.int64)).tolist()) for i in count]
            return cls([cls._read(arrays, i) for i in count], arities)

    @staticmethod
    def _read(arrays, i: int) -> _Layer:
        values = {name: arrays.get(f"{i}.{name}") for name in _Layer._fields}
        values["spline_order"], values["base"] = int(values["spline_order"]), int(values["base"])
        return _Layer(**values)


def to_numpy_model(kan) -> NumpyKAN:
    """Return the NumPy twin of a KAN or KANLinear, float64 or, for any narrower dtype, float32.

    Args:
        kan: a KAN or KANLinear on any device. Weights are copied; masked edges become zeros.

    Raises:
        TypeError: `kan` is neither: a convolution, heads, another codebase's model.
        ValueError: it has symbolic edges (`kan_kernels.symbolic.to_python` writes those without torch), is
            sharded over ranks, or a lazy layer that has met no x.
        ImportError: the package was installed without its module _C.

    Example:
        >>> to_numpy_model(KAN([2, 5, 1]))
        NumpyKAN([2, 5, 1], float32)
    """
    kan = getattr(kan, "_orig_mod", kan)  # in what torch.compile returned
    layers = plain_layers("kan", kan, "kan_kernels.symbolic.to_python")
    products = getattr(kan, "products", None) or []
    arities = [tuple(p.get_extra_state().tolist()) if p.arities else () for p in products]
    return NumpyKAN([_copy(layer) for layer in layers], arities or None)


def plain_layers(argument: str, model: Any, formulas: str) -> list[Any]:
    """Return the layers of a KAN, or the KANLinear itself, with numbers that can be copied.

    formulas: the function that takes a model of which all edges are formulas. Raise TypeError or ValueError.
    """
    from torch.nn.parameter import is_lazy

    from ..composition import KNOWN, check_chain, layers_of
    from ..nn import KANLinear

    layers: list[Any] = layers_of(model, argument)
    for i, layer in enumerate(layers):
        if not isinstance(layer, KANLinear):
            raise TypeError(f"{argument}: layer {i} is a {type(layer).__name__}, expected {KNOWN}")
        if is_lazy(layer.spline_weight):
            raise ValueError(f"{argument}: layer {i} has met no x yet, expected one that knows its inputs")
        if layer.symbolic is not None:
            raise ValueError(
                f"{argument}: layer {i} has symbolic edges, expected splines only; unfix them, or fix all "
                f"edges and use {formulas}"
            )
    check_chain(model, argument)
    return layers


def _multiplied(y: NDArray, arities: tuple[int, ...]) -> NDArray:
    """Return the products of groups of neighbouring columns."""
    starts = np.cumsum([0, *arities[:-1]])
    return np.ascontiguousarray(np.multiply.reduceat(y, starts, axis=1))


def _copy(layer) -> _Layer:
    dtype = "float64" if layer.spline_weight.element_size() == 8 else "float32"

    def array(tensor) -> Any:
        if tensor is None:
            return None
        tensor = tensor.detach().cpu()
        return np.array((tensor.double() if dtype == "float64" else tensor.float()).numpy(), dtype, order="C")

    spline_weight, base_weight = layer.masked_weights()
    return _Layer(
        array(spline_weight),
        array(base_weight),
        array(layer.bias),
        array(layer.grid),
        layer.spline_order,
        BASE_CODES[layer.base],
    )


def _kernel():
    try:
        from .._C import forward
    except ImportError as error:
        raise ImportError(
            f"a NumPy model needs the compiled module kan_kernels._C ({error}); {REMEDY}"
        ) from error
    return forward
