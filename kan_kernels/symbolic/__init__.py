"""From a trained KAN to a formula: candidates, edges with a formula, expressions of a whole model."""

from ..nn.function_library import Function, get, names, register
from ..nn.symbolic_edges import Edge, SymbolicEdges
from .actions import Candidate, fix, suggest, unfix
from .auto import EdgeReport, Report, auto
from .c_source import to_c
from .discovery import Discovery, Law, discover
from .expressions import formula, latex, to_function, to_python
from .polish import polish

__all__ = [
    "Candidate",
    "Discovery",
    "Edge",
    "EdgeReport",
    "Function",
    "Law",
    "Report",
    "SymbolicEdges",
    "auto",
    "discover",
    "fix",
    "formula",
    "get",
    "latex",
    "names",
    "polish",
    "register",
    "suggest",
    "to_c",
    "to_function",
    "to_python",
    "unfix",
]
