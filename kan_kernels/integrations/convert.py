"""The same function in another codebase's model: exact, or an error that names the part that cannot be held.

A conversion copies: the models share no tensor. From pykan to efficient-kan is two conversions. What a layout
writes as a product, such as a spline's scale, is multiplied out in the model's own dtype.
"""

from .efficient_kan.convert import from_efficient_kan, to_efficient_kan
from .jaxkan.convert import from_jaxkan
from .pykan.convert import from_pykan, load_checkpoint, to_pykan

__all__ = [
    "from_efficient_kan",
    "from_jaxkan",
    "from_pykan",
    "load_checkpoint",
    "to_efficient_kan",
    "to_pykan",
]
