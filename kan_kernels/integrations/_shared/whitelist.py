"""Whether code that nobody knows can only be a formula: the same one for every x, every size and at any time.

A probe sees some inputs. So the code may hold no more than arithmetic of x, the layer's tensors and options
by functions that are smooth or rearrange; comparisons of x with knots; branches on options. All else (clamp,
where, a branch on x or a size, a cut of rows) is a reason to leave the layer alone, with the line.
"""

import ast
from types import FunctionType
from typing import Any

from .cuts import Cuts, Terms
from .source import LOCAL, MISSING, Definition, canonical, is_text
from .subject import Subject

# What an expression may depend on, in this order: each includes those before it.
CONSTANT, EXTENT, KNOTS, WEIGHT, SIZE, DATA = range(6)
# CONSTANT: numbers and options. EXTENT: sizes of weights, which are others in the clone of a probe.
# KNOTS, WEIGHT: tensors of the layer. SIZE: of x, and dtypes and devices. DATA: x.

_POINTWISE = {
    *("exp", "cos", "sin", "tanh", "acos", "arccos", "sigmoid", "square", "pow", "neg", "negative"),
    *("add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "reciprocal"),
}
_LINEAR = {"matmul", "mm", "bmm", "einsum", "sum"}
_REARRANGING = {
    *("reshape", "view", "view_as", "flatten", "unsqueeze", "squeeze", "transpose", "permute", "swapaxes"),
    *("movedim", "t", "expand", "expand_as", "contiguous", "clone", "type_as"),
    *("cat", "concat", "concatenate", "stack"),
}
_METHODS = _POINTWISE | _LINEAR | _REARRANGING
_FUNCTIONS = {f"torch.{name}" for name in _METHODS} | {
    *("torch.logical_and", "torch.nn.functional.linear", "torch.nn.functional.silu")
}
_MADE = frozenset({"torch.arange", "torch.linspace"})  # from options alone
_KEYWORDS = frozenset(["dim", "axis", "keepdim", "start_dim", "end_dim", "dtype", "device", "dims"])
_LARGEST = 64  # whole number: no formula has larger ones


class Refused(Exception):
    """A node that is not understood: "line 7 of kan.py (...) calls clamp"."""


def find(cls: type, name: str) -> Any:
    """Return an attribute of a peer's class, nn.Module's own left out; MISSING if there is none."""
    for owner in cls.__mro__:
        if owner.__module__.partition(".")[0] != "torch" and name in owner.__dict__:
            return owner.__dict__[name]
    return MISSING


def stored(node: ast.AST) -> set[str]:
    """Return the variables that something below a node writes."""
    names = (part for part in ast.walk(node) if isinstance(part, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Store)}


class Reader:
    """A reader of one function; `returned` is what its result depends on."""

    def __init__(
        self,
        judge: Any,
        made: Definition,
        subject: Subject,
        cls: type,
        arguments: dict[str, int],
        method: bool,
    ) -> None:
        self.judge, self.made, self.subject, self.cls = judge, made, subject, cls
        self.kinds: dict[str, int] = dict(arguments)
        node = made.node
        if isinstance(node, ast.Lambda):
            raise self.refuse(node, "is a lambda")
        if node.args.vararg or node.args.kwarg:
            raise self.refuse(node, "takes any arguments")
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        self.me = names[0] if method and names else None
        for decorator in node.decorator_list:
            if made.constant(decorator) is not property:
                raise self.refuse(decorator, "decorates it")
        for name in names:
            self.kinds.setdefault(name, CONSTANT)
        self.returned = CONSTANT
        self.cuts = Cuts(made.constant, self.is_me, subject, self.is_knots)
        self.block(node.body)

    def refuse(self, node: ast.AST, why: str) -> Refused:
        return Refused(f"{self.made.line(node)} {why}")

    # ---- statements

    def block(self, body: list[ast.stmt]) -> None:
        for node in body:
            self.statement(node)

    def statement(self, node: ast.stmt) -> None:
        if is_text(node) or isinstance(node, ast.Pass):
            return
        if isinstance(node, ast.Return):
            kind = CONSTANT if node.value is None else self.kind(node.value)
            self.returned = max(self.returned, kind)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                self.assign_value(target, node.value)
        elif isinstance(node, ast.AnnAssign):
            if node.value is not None:
                self.assign(node.target, self.kind(node.value))
        elif isinstance(node, ast.AugAssign):
            self.assign(node.target, self.arithmetic(node, node.op, node.target, node.value))
        elif isinstance(node, ast.If):
            self.condition(node.test)
            before = dict(self.kinds)
            self.branch(node.body)
            after, self.kinds = self.kinds, before
            self.branch(node.orelse)
            self.join(after)
        elif isinstance(node, ast.For) and not node.orelse and self.is_range(node.iter):
            turns = max(map(self.kind, node.iter.args))  # type: ignore[attr-defined]
            self.assign(node.target, turns)
            for _ in range(2):  # what the first turn leaves, the second may read
                before = dict(self.kinds)
                self.branch(node.body, node)
                self.join(before)
                if turns != CONSTANT:  # what counts the turns is as many
                    self.join(dict.fromkeys(stored(node), turns))
        elif isinstance(node, ast.Assert):
            self.assertion(node.test)
        else:
            raise self.refuse(node, "is no assignment, loop over a range or branch on an option")

    def branch(self, body: list[ast.stmt], loop: ast.For | None = None) -> None:
        """Read what may run: what counts in there need not count behind it."""
        before = dict(self.cuts.variables)
        if loop is not None:
            self.cuts.counts(loop.target, loop.iter.args)  # type: ignore[attr-defined]
        self.block(body)
        self.cuts.only(before)

    def join(self, other: dict[str, int]) -> None:
        names = {*self.kinds, *other}
        self.kinds = {name: max(self.kinds.get(name, 0), other.get(name, 0)) for name in names}

    def assign(self, target: ast.expr, kind: int, terms: Terms | None = None) -> None:
        if isinstance(target, ast.Name) and target.id != self.me:
            self.kinds[target.id] = kind
            self.cuts.assigned(target.id, terms)
        elif isinstance(target, ast.Tuple):
            for part in target.elts:
                self.assign(part, kind)
        else:
            raise self.refuse(target, "writes into something else than a variable")

    def assign_value(self, target: ast.expr, value: ast.expr) -> None:
        """Give variables that are assigned side by side each their own kind."""
        pair = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        if not pair or len(target.elts) != len(value.elts):  # type: ignore[attr-defined]
            return self.assign(target, self.kind(value), self.cuts.terms(value))
        # all at once: what is assigned may be read beside it
        found = [(self.kind(part), self.cuts.terms(part)) for part in value.elts]  # type: ignore[attr-defined]
        for part, (kind, terms) in zip(target.elts, found, strict=True):  # type: ignore[attr-defined]
            self.assign(part, kind, terms)
        return None

    def is_knots(self, node: ast.expr) -> bool:
        return self.kind(node) == KNOTS

    def is_range(self, node: ast.expr) -> bool:
        if not isinstance(node, ast.Call) or node.keywords or self.made.constant(node.func) is not range:
            return False
        return all(self.kind(argument) <= EXTENT for argument in node.args)

    def condition(self, node: ast.expr) -> None:
        if self.kind(node) != CONSTANT:
            raise self.refuse(node, "branches on x, a size, a dtype or a tensor")

    def assertion(self, node: ast.expr) -> None:
        """Accept that sizes are asserted: where that fails, the peer raises on the probe too."""
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
            for part in node.values:
                self.assertion(part)
        elif isinstance(node, ast.Compare) and all(isinstance(op, ast.Eq) for op in node.ops):
            if any(self.kind(p) not in (CONSTANT, EXTENT, SIZE) for p in (node.left, *node.comparators)):
                raise self.refuse(node, "asserts something of x")
        else:
            self.condition(node)

    # ---- expressions

    def kind(self, node: ast.expr) -> int:
        """Return what the value depends on.

        Raises:
            Refused: it may be more than a formula.
        """
        method = getattr(self, f"of_{type(node).__name__}", None)
        if method is None:
            raise self.refuse(node, f"has a {type(node).__name__}")
        return method(node)

    def most(self, nodes: list[ast.expr]) -> int:
        return max(map(self.kind, nodes), default=CONSTANT)

    def of_Constant(self, node: ast.Constant) -> int:
        if isinstance(node.value, int) and abs(node.value) > _LARGEST:
            raise self.refuse(node, f"has the number {node.value}, larger than any in {self.subject.peer}'s")
        return CONSTANT

    def of_Tuple(self, node: ast.Tuple | ast.List) -> int:
        return self.most(node.elts)

    of_List = of_Tuple

    def of_Starred(self, node: ast.Starred) -> int:
        return self.kind(node.value)

    def of_Name(self, node: ast.Name) -> int:
        value = self.made.resolve(node.id)
        if value is LOCAL:
            if node.id == self.me:
                raise self.refuse(node, "passes the layer itself on")
            return self.kinds.get(node.id, DATA)
        if isinstance(value, (int, float, str, type(None))):
            return self.of_Constant(ast.copy_location(ast.Constant(value), node))
        raise self.refuse(node, f"names {node.id}")

    def of_Attribute(self, node: ast.Attribute) -> int:
        if self.is_me(node.value):
            return self.of_layer(node)
        constant = self.made.constant(node)
        if constant is not MISSING:
            return CONSTANT
        kind = self.kind(node.value)
        if node.attr in ("T", "mT"):
            return kind
        if node.attr in ("shape", "ndim"):
            return SIZE if kind == DATA else EXTENT
        if node.attr in ("dtype", "device"):
            return SIZE  # nothing may be decided by them
        raise self.refuse(node, f"reads {node.attr}")

    def is_me(self, node: ast.AST) -> bool:
        return self.me is not None and isinstance(node, ast.Name) and node.id == self.me

    def of_layer(self, node: ast.Attribute) -> int:
        name, subject = node.attr, self.subject
        if name in subject.knots:
            return KNOTS
        if name in subject.tensors:
            return WEIGHT
        if name in subject.extents:
            return EXTENT
        if name in subject.options or name in subject.parts or name in subject.callables:
            return CONSTANT
        value = find(self.cls, name)
        if type(value) is property:
            return self.judge.follow(value.fget, name, [], {}, method=True)
        raise self.refuse(node, f"reads {name}, which {subject.peer}'s does not")

    def of_UnaryOp(self, node: ast.UnaryOp) -> int:
        kind = self.kind(node.operand)
        if isinstance(node.op, (ast.USub, ast.UAdd)) or (isinstance(node.op, ast.Not) and kind == CONSTANT):
            return kind
        raise self.refuse(node, "inverts something")

    def of_BinOp(self, node: ast.BinOp) -> int:
        return self.arithmetic(node, node.op, node.left, node.right)

    def arithmetic(self, node: ast.AST, op: ast.operator, left: ast.expr, right: ast.expr) -> int:
        kinds = self.kind(left), self.kind(right)
        highest = max(kinds)
        sizes = highest in (EXTENT, SIZE) and isinstance(op, (ast.Add, ast.Sub, ast.Mult))
        if (SIZE in kinds or EXTENT in kinds) and not sizes:
            raise self.refuse(node, "computes with a size")
        if isinstance(op, ast.Pow) and kinds[1] != CONSTANT:
            raise self.refuse(node, "has a tensor as an exponent")
        if highest == CONSTANT:
            return highest
        if not isinstance(op, (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.MatMult, ast.BitAnd)):
            raise self.refuse(node, f"computes a {type(op).__name__}")
        return highest

    def of_BoolOp(self, node: ast.BoolOp) -> int:
        if self.most(node.values) != CONSTANT:
            raise self.refuse(node, "branches on x, a size, a dtype or a tensor")
        return CONSTANT

    def of_IfExp(self, node: ast.IfExp) -> int:
        self.condition(node.test)
        return max(self.kind(node.body), self.kind(node.orelse))

    def of_Compare(self, node: ast.Compare) -> int:
        kinds = [self.kind(part) for part in (node.left, *node.comparators)]
        if max(kinds) == CONSTANT:
            return CONSTANT
        order = all(isinstance(op, (ast.Lt, ast.LtE, ast.Gt, ast.GtE)) for op in node.ops)
        if order and len(kinds) == 2 and set(kinds) == {KNOTS, DATA}:
            return DATA
        sizes = SIZE in kinds or EXTENT in kinds
        raise self.refuse(node, "compares sizes" if sizes else "compares something else than x with knots")

    def of_Subscript(self, node: ast.Subscript) -> int:
        kind = self.kind(node.value)
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for part in parts:
            if isinstance(part, ast.Slice):
                for bound in (part.lower, part.upper, part.step):
                    if bound is not None:
                        self.bound(bound)
            elif (of := self.kind(part)) != CONSTANT:  # of others those that a clone has not are errors
                if kind == CONSTANT:  # a table
                    kind = of
                self.bound(part)
        return kind

    def bound(self, node: ast.expr) -> None:
        if self.kind(node) > EXTENT:
            raise self.refuse(node, "cuts by a size of x or by a tensor")
        if (why := self.cuts.why_not(node)) is not None:
            raise self.refuse(node, why)

    def of_Call(self, node: ast.Call) -> int:
        function = node.func
        if isinstance(function, ast.Attribute) and self.is_me(function.value):
            return self.call_of_layer(node, function.attr)
        value = self.made.constant(function)
        if value is not MISSING and value is not LOCAL:
            return self.call_of_function(node, value)
        if not isinstance(function, ast.Attribute):
            raise self.refuse(node, "calls something that is not known")
        return self.call_of_tensor(node, function)

    def arguments(self, node: ast.Call) -> tuple[list[int], dict[str, int]]:
        if any(keyword.arg is None for keyword in node.keywords):
            raise self.refuse(node, "passes any arguments")
        return [self.kind(a) for a in node.args], {str(k.arg): self.kind(k.value) for k in node.keywords}

    def call_of_layer(self, node: ast.Call, name: str) -> int:
        positional, named = self.arguments(node)
        if name in self.subject.callables:
            return max([*positional, *named.values(), WEIGHT])
        part = self.subject.parts.get(name)
        if part is not None:
            if named or positional != [DATA]:
                raise self.refuse(node, f"calls {name} with something else than x")
            return DATA  # judged by itself
        value = find(self.cls, name)
        if not isinstance(value, FunctionType):
            raise self.refuse(node, f"calls {name}, which {self.subject.peer}'s does not")
        return self.judge.follow(value, name, positional, named, method=True)

    def call_of_function(self, node: ast.Call, value: Any) -> int:
        name = canonical(value, "")
        positional, named = self.arguments(node)
        highest = max([*positional, *(named[k] for k in named.keys() - {"dtype", "device"}), CONSTANT])
        if name == "builtins.len":
            return SIZE if highest == DATA else EXTENT
        if name in _MADE:
            if highest != CONSTANT:
                raise self.refuse(node, "makes a tensor from x or its size")
            return WEIGHT
        if name in _FUNCTIONS:
            return self.tensor_result(node, name.rpartition(".")[2], positional, named)
        if isinstance(value, FunctionType) and value.__module__.partition(".")[0] != "torch":
            return self.judge.follow(value, value.__name__, positional, named, method=False)
        raise self.refuse(node, f"calls {name.removeprefix('torch.') or ast.unparse(node.func)}")

    def call_of_tensor(self, node: ast.Call, function: ast.Attribute) -> int:
        kind, name = self.kind(function.value), function.attr
        positional, named = self.arguments(node)
        if name in ("size", "dim"):
            return SIZE if kind == DATA else EXTENT
        if name == "to":
            if kind == SIZE or not all(
                map(self.is_likeness, (*node.args, *(k.value for k in node.keywords)))
            ):
                raise self.refuse(node, "converts to another dtype or device than a tensor's")
            return kind
        if name in _METHODS and kind != SIZE:
            return self.tensor_result(node, name, [kind, *positional], named)
        raise self.refuse(node, f"calls {name}")

    def is_likeness(self, node: ast.expr) -> bool:
        """Return whether this is a tensor, or its dtype or device."""
        if isinstance(node, ast.Attribute) and node.attr in ("dtype", "device"):
            node = node.value
        return self.made.constant(node) in (MISSING, LOCAL) and self.kind(node) in (KNOTS, WEIGHT, DATA)

    def tensor_result(self, node: ast.Call, name: str, positional: list[int], named: dict[str, int]) -> int:
        unknown = named.keys() - _KEYWORDS
        if unknown and not {"input", "weight", "equation", "other"} >= unknown:
            raise self.refuse(node, f"passes {', '.join(sorted(unknown))} to {name}")
        kinds = [*positional, *(named[k] for k in named.keys() - {"dtype", "device"})]
        if (SIZE in kinds or EXTENT in kinds) and name not in _REARRANGING:
            raise self.refuse(node, "computes with a size")
        return max(kind for kind in (*kinds, CONSTANT) if kind != SIZE)
