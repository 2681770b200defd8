"""A folder a backend. A backend is a module with

NAME                its public name;
DIFFERENTIABLE      whether plain autograd differentiates what it runs (else the Functions of _engine do);
STACKS              whether its four contractions take networks side by side: every tensor with one dimension
                    more in front, but for a grid that they share;
can_run(problem)    None, or the exact reason why it cannot run a `Problem`: which op, on what;
why(problem)        what speaks for it where it is the first that can run;
kan_linear, kan_linear_grad_input, kan_linear_grad_weight, kan_linear_backward    the four contractions, with
                    the signatures of `reference`; and a function by the name of every further op it runs;
NAMESPACE           of its torch.library ops, which _engine/autograd.py gives their gradients; None without;
LINEAR_OP           if it has a NAMESPACE, the op behind kan_linear, for torch.compile.

To add one: write it and put its module in BACKENDS, at its place in the order of preference.
"""

from types import ModuleType

from . import native, reference, triton

BACKENDS: dict[str, ModuleType] = {module.NAME: module for module in (native, triton, reference)}
