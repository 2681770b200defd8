"""The machine-code reader on snippets written by hand: parsing, loops, matrix work, pipes, cost."""

from __future__ import annotations

import pytest

from listings import listing, loop_of
from tools.static_cost.arch import architecture
from tools.static_cost.cost import function_loops
from tools.static_cost.flow import Flow
from tools.static_cost.matrix import matrix_work
from tools.static_cost.pipes import pipe_cycles
from tools.static_cost.sass import Instruction, parse, parse_line


def line(text: str) -> Instruction:
    """One instruction."""
    instruction = parse_line(f"        /*0040*/  {text} ;")
    assert instruction is not None, text
    return instruction


def test_parse_instruction() -> None:
    """Address, predicate, opcode, modifiers, operands and target of the usual forms."""
    plain = parse_line("        /*1ab0*/                   LOP3.LUT R57, R0.reuse, 0x70, RZ, 0xc0, !PT ;")
    assert plain is not None
    assert (plain.address, plain.predicate, plain.base) == (0x1AB0, None, "LOP3")
    assert plain.modifiers == ("LUT",)
    assert plain.operands == ("R57", "R0.reuse", "0x70", "RZ", "0xc0", "!PT")
    branch = line("@!P0 BRA `(.L_x_1)")
    assert (branch.predicate, branch.targets, branch.conditional) == ("!P0", (".L_x_1",), True)
    uniform = line("BRA.U !UP0, `(.L_x_3)")
    assert uniform.targets == (".L_x_3",) and uniform.conditional
    assert not line("BRA `(.L_x_3)").conditional
    assert line("BRA 0x1f0").targets == (0x1F0,)
    table = line('BRX R4 -0x3f0 (*"BRANCH_TARGETS .L_x_7,.L_x_8"*)')
    assert table.targets == (".L_x_7", ".L_x_8")
    assert line("@!PT LDS RZ, [RZ]").never
    assert line("STTM.x32 tmem[UR12+0x80], R4").opcode == "STTM.x32"
    assert line("EXIT").operands == ()
    assert parse_line("        .global         gemm") is None


def test_parse_sections() -> None:
    """Each .text section is a function; labels belong to the instruction that follows."""
    text = "\n".join(
        [
            '\t.section .text._Z3foov,"ax",@progbits',
            "_Z3foov:",
            ".text._Z3foov:",
            "        /*0000*/                   MOV R1, R2 ;",
            ".L_x_0:",
            "        /*0010*/                   BRA `(.L_x_0) ;",
            '\t.section .text.bar,"ax",@progbits',
            "        /*0000*/                   EXIT ;",
        ]
    )
    first, second = parse(text)
    assert (first.name, len(first.instructions), first.labels[".L_x_0"]) == ("_Z3foov", 2, 1)
    assert (second.name, [i.opcode for i in second.instructions]) == ("bar", ["EXIT"])
    with pytest.raises(ValueError, match="nvdisasm -c"):
        parse("not a listing")


NEST = """
    MOV R0, RZ
    .L_outer:
    MOV R1, RZ
    .L_inner:
    FFMA R2, R3, R4, R2
    @P0 BRA `(.L_inner)
    IADD3 R0, R0, 0x1, RZ
    @P1 BRA `(.L_outer)
    EXIT
    .L_end:
    BRA `(.L_end)
"""


def test_nested_loops() -> None:
    """The inner loop is a child of the outer; the jump to itself that nothing reaches is no loop."""
    flow = Flow(listing(NEST))
    assert len(flow.loops) == 2
    inner, outer = flow.loops
    assert (inner.depth, outer.depth, inner.parent, outer.children) == (2, 1, 1, [0])
    assert flow.indices(inner.blocks) == [2, 3]
    assert flow.indices(outer.blocks) == [1, 2, 3, 4, 5]
    assert flow.indices(flow.own_blocks(outer)) == [1, 4, 5]


def test_conditional_part_of_a_loop() -> None:
    """A block that is skipped in some iterations belongs to the loop, but is not run every time."""
    flow = Flow(
        listing("""
        .L_top:
        @P0 BRA `(.L_skip)
        FFMA R2, R3, R4, R2
        .L_skip:
        @P1 BRA `(.L_top)
        EXIT
        """)
    )
    (loop,) = flow.loops
    assert flow.indices(loop.blocks) == [0, 1, 2]
    assert flow.indices(flow.every_time(loop)) == [0, 2]


def test_loop_left_by_a_call() -> None:
    """Code for sm_80 leaves loops by a predicated call; the branch behind it is the back edge."""
    flow = Flow(
        listing("""
        .L_top:
        FFMA R2, R3, R4, R2
        @P0 CALL.REL.NOINC `(.L_out)
        BRA `(.L_top)
        .L_out:
        EXIT
        """)
    )
    (loop,) = flow.loops
    assert flow.indices(loop.blocks) == [0, 1, 2]


def test_diverged_path_is_no_part() -> None:
    """What BRA.DIV leads to does not count: these warps do not diverge."""
    flow = Flow(
        listing("""
        .L_top:
        BRA.DIV UR4, `(.L_far)
        SHFL.BFLY PT, R1, R2, 0x1, 0x1f
        .L_back:
        @P0 BRA `(.L_top)
        EXIT
        .L_far:
        WARPSYNC.ALL
        BRA `(.L_back)
        """)
    )
    (loop,) = flow.loops
    assert flow.indices(loop.blocks) == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "dtype", "flops", "a_operand"),
    [
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", "bf16", 2 * 16 * 8 * 16, "registers"),
        ("HMMA.16816.F32 R4, R8, R12, R4", "fp16", 2 * 16 * 8 * 16, "registers"),
        ("HMMA.1688.F32.TF32 R4, R8, R12, R4", "tf32", 2 * 16 * 8 * 8, "registers"),
        ("DMMA.884 R4, R8, R12, R4", "fp64", 2 * 8 * 8 * 4, "registers"),
        ("IMMA.16832.S8.S8 R4, R8, R12, R4", "int8", 2 * 16 * 8 * 32, "registers"),
        # a quarter for each of the four warps that issue it
        ("HGMMA.64x128x16.F32.BF16 R88, R164, gdesc[UR16].tnspB, R88", "bf16", 64 * 128 * 8, "registers"),
        ("HGMMA.64x256x8.F32.TF32 R24, gdesc[UR4], R24, gsb0", "tf32", 64 * 256 * 4, "shared"),
    ],
)
def test_matrix_work(text: str, dtype: str, flops: int, a_operand: str) -> None:
    """FLOPs are 2 m n k of the shape in the modifiers."""
    work = matrix_work([line(text)], 0)
    assert work is not None
    assert (work.dtype, work.flops, work.a_operand, work.once) == (dtype, flops, a_operand, False)


def test_sparse_matrix_rate() -> None:
    """Structured sparsity doubles the rate: twice the k takes the time of the dense instruction."""
    dense = listing(loop_of("HMMA.16816.F32.BF16 R4, R8, R12, R4"))
    sparse = listing(loop_of("HMMA.SP.16832.F32.BF16 R4, R8, R12, R4, R16, 0x0"))
    (a,), (b,) = (function_loops(f, architecture(80), 4) for f in (dense, sparse))
    assert b.matrix_flops == 2 * a.matrix_flops and b.matrix_cycles == a.matrix_cycles


TCGEN05 = "UTCHMMA tmem[UR23], gdesc[UR20], tmem[UR11], tmem[UR28], idesc[UR29], UPT"


def test_tensor_memory_work() -> None:
    """The shape of tcgen05 is in its descriptor: read where a constant is moved there, unknown elsewhere."""
    # 0x8210490: float32 accumulators, A and B bfloat16, N = 16 x 8, M = 8 x 16
    known = [line("UMOV UR29, 0x8210490"), line("UMOV UR28, 0x0"), line(TCGEN05)]
    work = matrix_work(known, 2)
    assert work is not None and work.once
    assert (work.dtype, work.flops, work.a_operand) == ("bf16", 2 * 128 * 128 * 16, "tensor memory")
    computed = [line("ULOP3.LUT UR29, UR4, UR5, URZ, 0xfc, !UPT"), line(TCGEN05)]
    unknown = matrix_work(computed, 1)
    assert unknown is not None and unknown.flops is None
    assert matrix_work([line("FFMA R1, R2, R3, R1")], 0) is None
    assert matrix_work([line("HFMA2.MMA R5, -RZ, RZ, 0, 0")], 0) is None


def test_flops_given_by_the_caller() -> None:
    """Where the descriptor is unknown the caller's figure counts and is named; without one it is reported."""
    function = listing(loop_of("ULOP3.LUT UR29, UR4, UR5, URZ, 0xfc, !UPT", TCGEN05))
    (silent,) = function_loops(function, architecture(100), 4)
    assert silent.unknown["UTCHMMA"] == 1 and silent.fraction is None and silent.ratio is None
    (told,) = function_loops(function, architecture(100), 4, flops_per_iteration=1 << 20)
    assert told.matrix_flops == 1 << 20 and not told.unknown
    assert told.matrix_cycles == (1 << 20) / 8192
    assert any("given by the caller" in note for note in told.notes)


@pytest.mark.parametrize(
    ("text", "sm", "pipes"),
    [
        ("FFMA R1, R2, R3, R1", 90, {"fma": 0.25}),
        ("FFMA R1, R2, R3, R1", 80, {"fma": 0.5}),
        ("FFMA2 R4, R4.F32x2.HI_LO, R4.F32x2.HI_LO, 0.5", 100, {"fma": 0.5}),
        ("IMAD.WIDE R2, R3, 0x4, R6", 90, {"imad": 0.5, "fma": 0.25}),
        ("HFMA2.BF16_V2 R1, R2, R3, R1", 80, {"half": 0.5}),
        ("HFMA2 R1, R2, R3, R1", 90, {"half": 0.25, "fma": 0.25}),
        ("LOP3.LUT R5, R6, 0x70, RZ, 0xc0, !PT", 90, {"alu": 0.5}),
        ("F2FP.BF16.F32.PACK_AB R33, R103, R102", 90, {"alu": 0.5}),
        ("MUFU.EX2 R1, R2", 90, {"xu": 2.0}),
        ("DFMA R2, R4, R6, R2", 86, {"fp64": 16.0}),
        ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", 90, {"lsu": 1.0}),
        ("LDS R8, [R7+UR4]", 90, {"lsu": 1.0, "memory": 1.0}),
        ("LDS.128 R8, [R7+UR4]", 90, {"lsu": 1.0, "memory": 4.0}),
        ("LDS.U8 R8, [R7]", 90, {"lsu": 1.0, "memory": 1.0}),
        ("LDSM.16.M88.4 R8, [R7]", 90, {"lsu": 1.0, "memory": 4.0}),
        ("LDSM.16.MT88.2 R8, [R7]", 90, {"lsu": 1.0, "memory": 2.0}),
        ("LDGSTS.E.BYPASS.128 [R21+0x12000], [R10.64], !P0", 80, {"lsu": 1.0, "memory": 4.0}),
        ("@!PT LDS RZ, [RZ]", 100, {}),
        ("STTM.x32 tmem[UR12+0x80], R4", 100, {"tensor memory": 8.0}),
    ],
)
def test_pipe_cycles(text: str, sm: int, pipes: dict[str, float]) -> None:
    """SM cycles of one warp instruction: 32 threads over the lanes of its pipe."""
    assert pipe_cycles(line(text), architecture(sm)) == pipes


def test_unknown_opcode_is_reported() -> None:
    """An opcode in no table costs its issue slot and is named."""
    (cost,) = function_loops(listing(loop_of("FROBNICATE.X R1, R2")), architecture(90), 4)
    assert pipe_cycles(line("FROBNICATE R1, R2"), architecture(90)) is None
    assert cost.unknown == {"FROBNICATE.X": 1}
    assert cost.pipes["issue"] == 4 * 3 / 4


def test_loop_cost_by_hand() -> None:
    """Eight warps, one HGMMA 64x128x16 and six other instructions on sm_90, worked out by hand."""
    body = ["HGMMA.64x128x16.F32.BF16 R88, R164, gdesc[UR16], R88", *["FFMA R1, R2, R3, R1"] * 4]
    (cost,) = function_loops(listing(loop_of(*body)), architecture(90), 8)
    assert cost.matrix_flops == 2 * (2 * 64 * 128 * 16)  # two warp groups
    assert cost.matrix_cycles == cost.pipes["tensor"] == cost.matrix_flops / 4096 == 128
    assert cost.generation_cycles == 6 * 8 / 4
    assert cost.pipes["issue"] == 7 * 8 / 4
    assert cost.pipes["fma"] == 4 * 8 / 4
    assert cost.pipes["memory"] == 2 * (128 * 32) / 128  # B, once for each warp group
    assert cost.bound == "tensor" and cost.fraction == 1.0 and cost.ratio == 12 / 128
    assert cost.a_operands == {"registers"}


def test_bound_by_generation() -> None:
    """When the other instructions take longer than the matrix work, the fraction of peak says how much."""
    body = ["HMMA.16816.F32.BF16 R4, R8, R12, R4", *["MUFU.EX2 R1, R2"] * 4]
    (cost,) = function_loops(listing(loop_of(*body)), architecture(80), 4)
    assert cost.bound == "xu" and cost.pipes["xu"] == 4 * 4 * 2
    assert cost.fraction == (4 * 4096 / 2048) / 32


def test_mma_sync_on_hopper() -> None:
    """mma.sync cannot reach the peak of sm_90: the pipe is busy longer, the fraction and a note say so."""
    (cost,) = function_loops(listing(loop_of("HMMA.16816.F32.BF16 R4, R8, R12, R4")), architecture(90), 4)
    assert cost.matrix_cycles == 4 * 4096 / 4096
    assert cost.fraction == pytest.approx(0.62)
    assert any("mma.sync" in note for note in cost.notes)


def test_every_matrix_loop_is_reported() -> None:
    """Two loops with matrix instructions: both, the larger first; the loop without any is left out."""
    hmma = "HMMA.16816.F32.BF16 R4, R8, R12, R4"
    text = f"""
    .L_a:
    {hmma}
    @P0 BRA `(.L_a)
    .L_b:
    {hmma}
    {hmma}
    @P0 BRA `(.L_b)
    .L_c:
    FFMA R1, R2, R3, R1
    @P0 BRA `(.L_c)
    EXIT
    """
    large, small = function_loops(listing(text), architecture(80), 4)
    assert (large.begin, large.matrix_flops) == (0x20, 2 * small.matrix_flops)


def test_loops_without_matrix_work() -> None:
    """The loop with the most multiply-adds stands in; without a loop, all the code."""
    (cost,) = function_loops(listing(NEST), architecture(90), 4)
    assert (cost.begin, cost.end, cost.fraction) == (0x20, 0x30, None)
    assert any("inside a loop with 3 further instructions" in note for note in cost.notes)
    (straight,) = function_loops(listing("FFMA R1, R2, R3, R1\nEXIT"), architecture(90), 4)
    assert sum(straight.instructions.values()) == 2 and any("no loop" in note for note in straight.notes)


def test_subroutines_are_noted() -> None:
    """A called subroutine comes back into the loop; that its code is not counted is noted."""
    text = """
    .L_top:
    CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn)
    FFMA R1, R2, R3, R1
    @P0 BRA `(.L_top)
    EXIT
    $__internal_0_$__cuda_sm3x_div_rn:
    MUFU.RCP R2, R3
    RET.REL.NODEC R4 `(kernel)
    """
    (cost,) = function_loops(listing(text), architecture(90), 4)
    assert cost.instructions == {"CALL": 1, "FFMA": 1, "BRA": 1}
    assert any("1 call(s) of subroutines" in note for note in cost.notes)


def test_architectures() -> None:
    """A relative takes the rates of the nearest older family; older ones are refused."""
    assert architecture(103).sm == 100 and architecture(87).sm == 86 and architecture(121).sm == 120
    with pytest.raises(ValueError, match="sm_80 and later"):
        architecture(75)


def test_dense_rates_follow_from_the_data_sheets() -> None:
    """The committed matrix rates against peak / (SMs x clock), to 2%."""
    sheets = {80: (312e12, 108, 1.41e9), 90: (989.4e12, 132, 1.83e9), 100: (2250e12, 148, 1.85e9)}
    for sm, (peak, sms, clock) in sheets.items():
        rates = architecture(sm).matrix
        assert rates["bf16"] == pytest.approx(peak / (sms * clock), rel=0.02)
        assert rates["tf32"] * 2 == rates["bf16"] == rates["fp16"]
