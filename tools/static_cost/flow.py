"""Basic blocks and natural loops of a function."""

from __future__ import annotations

from dataclasses import dataclass, field

import networkx  # torch brings it

from .sass import BRANCHES, ENDS, Function, Instruction


@dataclass
class Block:
    """Instructions ``begin`` to ``end`` (exclusive) of the function."""

    begin: int
    end: int
    successors: list[int] = field(default_factory=list)


@dataclass
class Loop:
    """A natural loop; blocks are numbers into Flow.blocks, parent and children numbers into Flow.loops."""

    header: int
    blocks: set[int]
    latches: list[int]
    parent: int | None = None
    children: list[int] = field(default_factory=list)
    depth: int = 1


class Flow:
    """The control flow graph of a function: ``blocks`` in address order, ``loops`` innermost first."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.blocks = _blocks(function)
        self.dominators = _dominators(self.blocks)
        self.loops = self._loops()

    def indices(self, blocks: set[int]) -> list[int]:
        """The instructions of these blocks, as indices into function.instructions, in address order."""
        return [n for b in sorted(blocks) for n in range(self.blocks[b].begin, self.blocks[b].end)]

    def own_blocks(self, loop: Loop) -> set[int]:
        """The blocks that lie in no inner loop."""
        inner = (self.loops[child].blocks for child in loop.children)
        return loop.blocks.difference(*inner)

    def every_time(self, loop: Loop) -> set[int]:
        """The blocks that each iteration runs: those that dominate every latch."""
        return {b for b in loop.blocks if all(b in self.dominators[latch] for latch in loop.latches)}

    def _loops(self) -> list[Loop]:
        predecessors: list[list[int]] = [[] for _ in self.blocks]
        latches: dict[int, list[int]] = {}
        for number, block in enumerate(self.blocks):
            if number not in self.dominators:
                continue
            for successor in block.successors:
                predecessors[successor].append(number)
                if successor in self.dominators[number]:
                    latches.setdefault(successor, []).append(number)
        loops = []
        for header, sources in latches.items():
            body, stack = {header}, [source for source in sources if source != header]
            while stack:
                block_number = stack.pop()
                if block_number not in body:
                    body.add(block_number)
                    stack.extend(predecessors[block_number])
            loops.append(Loop(header, body, sources))
        loops.sort(key=lambda loop: (len(loop.blocks), loop.header))
        for number, loop in enumerate(loops):
            outer = (n for n in range(number + 1, len(loops)) if loop.blocks < loops[n].blocks)
            loop.parent = next(outer, None)
            if loop.parent is not None:
                loops[loop.parent].children.append(number)
        for loop in reversed(loops):
            if loop.parent is not None:
                loop.depth = loops[loop.parent].depth + 1
        return loops


def _leaves(instruction: Instruction) -> bool:
    return instruction.base in ENDS or instruction.base in BRANCHES


def _follow(instruction: Instruction) -> tuple[str | int, ...]:
    """The targets that count as edges."""
    # BRA.DIV leads to the path of a warp that has diverged before a shuffle: these kernels never take it
    return () if instruction.opcode.startswith("BRA.DIV") else instruction.targets


def _blocks(function: Function) -> list[Block]:
    code = function.instructions
    starts = {0, *(index for index in function.labels.values() if index < len(code))}
    targets: dict[int, list[int]] = {}
    for index, instruction in enumerate(code):
        if not _leaves(instruction):
            continue
        starts.add(index + 1)
        found = (function.index_of(target) for target in _follow(instruction))
        targets[index] = [target for target in found if target is not None and target < len(code)]
        starts.update(targets[index])
    ordered = sorted(start for start in starts if start < len(code))
    number = {start: n for n, start in enumerate(ordered)}
    blocks = []
    for start, end in zip(ordered, [*ordered[1:], len(code)], strict=True):
        last = code[end - 1]
        successors = [number[target] for target in targets.get(end - 1, [])] if not last.never else []
        # a call comes back; a branch to the other side of a diverged warp falls through
        always = (last.base in ENDS or last.base in BRANCHES) and not last.conditional
        falls = not always or last.base == "CALL" or last.opcode.startswith("BRA.DIV") or last.never
        if falls and end < len(code):
            successors.append(number[end])
        blocks.append(Block(start, end, list(dict.fromkeys(successors))))
    return blocks


def _dominators(blocks: list[Block]) -> dict[int, set[int]]:
    """block -> the blocks on every path to it, for the blocks that can be reached at all."""
    graph = networkx.DiGraph(
        [(n, successor) for n, block in enumerate(blocks) for successor in block.successors]
    )
    graph.add_node(0)
    nearest = networkx.immediate_dominators(graph, 0)
    dominators: dict[int, set[int]] = {}
    for block in networkx.dfs_preorder_nodes(graph, 0):
        chain, at = {block}, block
        while (above := nearest.get(at)) is not None and above != at:  # the root is its own, or has none
            chain.add(above)
            at = above
        dominators[block] = chain
    return dominators
