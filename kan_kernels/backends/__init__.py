"""A folder a backend. A backend is a module with

NAME                its public name;
DIFFERENTIABLE      whether plain autograd differentiates what it runs (else the Functions of _engine do);
STACKS              whether its four contractions take networks side by side: every tensor with one dimension
                    more in front, but for a grid that they share;
can_run(problem)    None, or the exact reason why it cannot run a `Problem`: which op, on what;
why(problem)        what speaks for it where it is the first that can run;
NAMESPACE           of its torch.library ops, which _engine gives their gradients; None without.

For every op that `can_run` answers None for it has the functions of that op, by their names in FUNCTIONS and
with the signatures of the ops (`library.SCHEMAS`, csrc/ops), which are those of `reference` where it has the
op. Unless DIFFERENTIABLE they run below autograd. A backend with a NAMESPACE has an op of the same name there
for each of them, which is what its function calls while torch compiles or traces (`library.define` makes
those of layers), and

LINEAR_OP           the op behind kan_linear, for torch.compile;
ACTIVATION_OP       the op behind kan_activation, likewise.

All have kan_linear; an op of COMPOSED (_core/problem.py) that a backend lacks is made of it. Of two backends
that have an op the one runs it that `dispatch` chooses, whatever ran before: nobody else names a backend.

To add one: write it and put its module in BACKENDS, at its place in the order of preference.
"""

from types import ModuleType

from . import native, reference, triton

BACKENDS: dict[str, ModuleType] = {module.NAME: module for module in (native, triton, reference)}

FUNCTIONS = {
    "kan_linear": (
        "kan_linear", "kan_linear_grad_input", "kan_linear_grad_weight", "kan_linear_backward",
    ),
    "kan_activation": (
        "kan_activation", "kan_activation_grad_input", "kan_activation_grad_weight",
        "kan_activation_backward",
    ),
    "kan_conv": ("kan_conv", "kan_conv_backward"),
    "edge_gram": (
        "edge_gram", "edge_gram_grad_input", "edge_cross_gram", "edge_moments", "edge_moments_backward",
    ),
    "edge_l1": ("edge_l1", "edge_l1_backward"),
    "layer_norm_rbf": ("layer_norm_rbf", "layer_norm_rbf_backward"),
    "kan_network": ("kan_network", "kan_network_backward", "kan_network_error", "kan_network_lbfgs"),
}  # fmt: skip
"""What a backend that runs an op has."""


def with_op(name: str) -> list[ModuleType]:
    """Return the backends that have a torch.library op of this name."""
    return [m for m in BACKENDS.values() if m.NAMESPACE is not None and hasattr(m, name)]
