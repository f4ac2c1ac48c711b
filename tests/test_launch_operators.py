"""Launch plans by an operator's name: its own, with hints for the GPU that is asked for, here or not."""

import dataclasses
import itertools
import json

import pytest
import samples
import torch
from captured import captured, launches
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind
from test_launch import BACKWARD, FORWARD, KEYS, label

import srmsnorm
from srmsnorm import Gpu

HINTS = {"kept", "apart", "shared_bytes", "streamed", "ahead", "tail"}
KEPT, APART = {"kept", "tail"}, {"apart", "shared_bytes"}
NO_ROWS = {"_library", "_gpu", "_launch_plan", "_srms_norm_backward"}  # the last is a choice of two others
OPERATORS = sorted(
    {name.removeprefix("srmsnorm::") for name in torch._C._dispatch_get_all_op_names() if "srmsnorm::" in name}
    - NO_ROWS
)


def card(capability, multiprocessors, mhz, bits, **properties):
    bandwidth = 2 * mhz * 10**6 * bits // 8
    cluster = 16 if capability >= 90 else 1
    return dataclasses.replace(
        Gpu(capability, multiprocessors, 228 << 10, 50 << 20, bandwidth, cluster), **properties
    )  # fmt: skip


H100, H200, A100 = card(90, 132, 2619, 5120), card(90, 132, 3201, 6144), card(80, 108, 1593, 5120)
CARDS = {"H100": H100, "H200": H200, "A100": A100}


def plan(operator, dim, dtype=BFLOAT, *args, **options):
    """On an H100, whichever GPU is here."""
    options.setdefault("gpu", H100)
    if operator == "_srms_norm_backward_of_input":
        options["out_dtype"] = FLOAT
    return srmsnorm.launch_plan(operator, dim, dtype, *args, **options)


def hints(*args, **options):
    found = plan(*args, **options)
    return {name for name in HINTS if found[name]}


def numbers(found):
    return {key: found[key] for key in KEYS}


def test_no_operator_is_forgotten():
    with pytest.raises(ValueError, match="^srmsnorm: operator must be one of .*, got 'rms_norm'") as error:
        plan("rms_norm", 64)
    known = str(error.value).removeprefix("srmsnorm: operator must be one of ").split(", got")[0]
    assert sorted(known.split(", ")) == OPERATORS


@pytest.mark.parametrize("gpu", [H100, H200], ids=["H100", "H200"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_has_a_plan(operator, gpu):
    for dim in (1, 7, 64, 100, 1000, 4096, 4100, 16_384, 65_536, 65_537, 2**20, 2**40):
        for aligned, in_phase in itertools.product((True, False), repeat=2):
            found = plan(operator, dim, aligned=aligned, in_phase=in_phase, gpu=gpu)
            assert set(found) == KEYS | HINTS | {"gpu"} and found["gpu"] is gpu
            room = found["threads_per_row"] * found["cluster"] * found["vectors"] * found["vector_elements"]
            assert found["twice"] or room >= dim // 8 * 8
            assert found["vector_elements"] == 8 and isinstance(found["twice"], bool)
            wide = found["cluster"] > 1 or (gpu is H200 and found["threads_per_row"] > 32 and not found["kept"])
            short = gpu is H200 and found["vectors"] == 0
            assert found["ahead"] == 0 or short or (wide and not found["twice"])
            assert (found["tail"] > 0) == found["kept"]


@pytest.mark.parametrize(("kind", "options"), FORWARD + BACKWARD, ids=label)
def test_the_norm_has_the_plan_that_it_had(kind, options):
    """The call with an operator and the one without it, whose dtype in backward is the output's."""
    options = {"in_phase": True, "backward": False, **options}
    backward = options.pop("backward")
    operands = 2 if backward or kind.residual else 1
    for dim in [*range(1, 300), *range(300, 20_000, 997), 16_384, 2**16, 2**17 + 1, 2**20]:
        old = srmsnorm.launch_plan(dim, kind.dtype, kind.residual, backward=backward, **options)
        for operator in ("_srms_norm_backward_input",) if backward else ("srms_norm", "_srms_norm"):
            new = srmsnorm.launch_plan(operator, dim, kind.dtype, kind.residual, **options)
            assert numbers(new) == old, dim
    if operands == 2 and not backward:
        assert numbers(plan("add_srms_norm", 4096, kind.dtype, kind.residual, **options)) == srmsnorm.launch_plan(
            4096, kind.dtype, kind.residual, **options
        )


@pytest.mark.parametrize("operator", ["_srms_norm_backward_residual", "_srms_norm_backward_pair"])
def test_backward_has_a_plan_whichever_gradients_it_makes(operator):
    for dim, grad_sum in itertools.product((64, 4096, 16_384, 65_536), (False, True)):
        both = [plan(name, dim, BFLOAT, FLOAT, grad_sum=grad_sum) for name in (operator, "_srms_norm_backward_input")]
        assert numbers(both[0]) == numbers(both[1])


def test_what_is_read_twice():
    """Operators with fewer instances take rows that lie anywhere as their launcher does: the norm's plan is another."""
    odd = {"in_phase": False}
    assert not plan("srms_norm", 4096, BFLOAT, BFLOAT, **odd)["twice"]
    assert plan("gated_srms_norm", 4096, **odd)["twice"] and not plan("gated_srms_norm", 200, **odd)["twice"]
    assert numbers(plan("srms_norm_quantized", 4096, BFLOAT, BFLOAT, **odd)) == numbers(
        plan("srms_norm", 4096, BFLOAT, BFLOAT, **odd)
    )
    for dim, options in ((64, {"aligned": False}), (32_768, {"max_cluster": 1})):
        assert plan("srms_norm_quantized", dim, **options)["twice"] and not plan("srms_norm", dim, **options)["twice"]
    assert not plan("srms_norm_quantized", 4096)["twice"]
    # rstd reads what the norm does, an operand alone: nothing is out of phase with it.
    assert numbers(plan("rstd", 4096, **odd)) == numbers(plan("rstd", 4096))
    assert plan("rstd", 4100, aligned=False)["shifted"] and not plan("srms_norm", 4100, aligned=False)["shifted"]
    # A gate makes clusters of narrower rows.
    assert plan("gated_srms_norm", 16_384)["cluster"] == 4 and plan("srms_norm", 16_384)["cluster"] == 1
    assert plan("_gated_srms_norm_backward", 16_384)["cluster"] == 4


@pytest.mark.parametrize("operator", ["srms_norm_quantized", "rstd"])
def test_few_threads_where_little_is_written(operator):
    """A half or a quarter of the norm's threads, with as many more vectors each, which add in the norm's order; of flat
    rows alone."""
    halves = [(16, BFLOAT), (64, BFLOAT), (104, BFLOAT), (512, BFLOAT), (1024, BFLOAT), (1024, FLOAT), (4096, BFLOAT)]
    for share, (dim, dtype) in [*((2, case) for case in halves), (4, (256, BFLOAT)), (4, (128, FLOAT))]:
        norm, found = plan("srms_norm", dim, dtype), plan(operator, dim, dtype)
        assert found["vectors"] == norm["vectors"] * share
        assert found["threads_per_row"] * share == norm["threads_per_row"]
        assert found["rows_per_block"] == (1 if found["threads_per_row"] > 32 else 128 // found["threads_per_row"])
    for dim in (8, 1536, 4097, 8192, 63):
        assert plan(operator, dim)["threads_per_row"] == plan("srms_norm", dim)["threads_per_row"]
    assert numbers(plan("srms_norm_quantized", 64, BFLOAT, BFLOAT)) == numbers(plan("srms_norm", 64, BFLOAT, BFLOAT))


def test_few_threads_where_rows_are_shifted():
    """Half of them, with two vectors each, which add in the same order; but where bytes are made."""
    calls = [("srms_norm", None), ("srms_norm", "residual_dtype"), ("rstd", None), ("gated_srms_norm", "gate_dtype")]
    for dim, dtype in ((16, BFLOAT), (64, BFLOAT), (256, BFLOAT), (8, FLOAT), (128, FLOAT)):
        for operator, beside in [*calls, ("_srms_norm_backward_input", None)]:
            options = {beside: dtype} if beside else {}
            aligned, found = plan("srms_norm", dim, dtype), plan(operator, dim, dtype, aligned=False, **options)
            assert (aligned["vectors"], found["vectors"]) == (1, 2) and found["shifted"] and not found["edges"]
            assert found["threads_per_row"] * 2 == aligned["threads_per_row"]
            assert found["rows_per_block"] == aligned["rows_per_block"] * 2
        for options in ({}, {"residual_dtype": dtype}):
            read_twice = plan("srms_norm_quantized", dim, dtype, aligned=False, **options)
            assert read_twice["twice"] and read_twice["threads_per_row"] == aligned["threads_per_row"]
    assert plan("srms_norm", 8, aligned=False)["vectors"] == 1
    assert plan("srms_norm", 192, aligned=False)["threads_per_row"] == plan("srms_norm", 192)["threads_per_row"]


def test_fewer_blocks_where_bytes_are_written():
    """Half of the norm's blocks, where they are many and of a power of two of threads, with twice the threads: the same
    ones in the same order."""
    for dim, blocks in ((20_480, 4), (32_768, 4), (40_960, 8), (49_152, 8), (65_536, 8), (131_072, 8), (262_144, 8)):
        norm, found = plan("srms_norm", dim), plan("srms_norm_quantized", dim)
        assert found["cluster"] == blocks and found["vectors"] == norm["vectors"]
        assert found["threads_per_row"] * blocks == norm["threads_per_row"] * norm["cluster"]
        assert plan("rstd", dim)["cluster"] == norm["cluster"]
    assert plan("srms_norm_quantized", 65_536, aligned=False)["cluster"] == plan("srms_norm", 65_536)["cluster"]


def test_chunks_follow_from_the_dtypes():
    wide, narrow = plan("_srms_norm_backward_input", 16_384, BFLOAT, out_dtype=FLOAT), plan("srms_norm", 16_384)
    assert (wide["vector_elements"], narrow["vector_elements"]) == (4, 8)  # y's, and the input's
    assert plan("_srms_norm_backward_of_input", 16_384)["vector_elements"] == 8
    # A float32 gradient of the sum takes twice the room that a 16-bit one is staged in.
    with_sum = [plan("_srms_norm_backward_input", 400_448, BFLOAT, kind, grad_sum=True) for kind in (BFLOAT, FLOAT)]
    assert [found["twice"] for found in with_sum] == [False, True]
    for dtype in (HALF, FLOAT, DOUBLE):
        assert plan("add_srms_norm_", 512, dtype)["vector_elements"] == 16 // dtype.itemsize


# What is taken of the row of a card: forward, with residual, with the sum, backward, a float y, a quantised one. The
# last column, of cards that nobody has measured, is empty.
TAKEN = [
    ("srms_norm", {}, {*KEPT, *APART}, KEPT),
    ("srms_norm", {"residual_dtype": BFLOAT}, {*KEPT, *APART}, {*KEPT, *APART}),
    ("add_srms_norm", {}, {*KEPT, *APART}, {*KEPT, *APART}),
    ("add_srms_norm_", {}, {*KEPT, *APART}, {*KEPT, *APART}),
    ("_srms_norm_backward_input", {}, {*KEPT, *APART}, {*KEPT, *APART}),
    ("_srms_norm_backward_input", {"grad_sum": True}, set(), set()),
    ("_srms_norm_backward_pair", {"residual_dtype": FLOAT}, {*KEPT, *APART}, {*KEPT, *APART}),
    ("srms_norm", {"out_dtype": FLOAT}, {"streamed"}, {"ahead"}),
    ("srms_norm", {"out_dtype": HALF}, set(), set()),
    ("_srms_norm_backward_of_input", {}, set(), set()),
    ("rstd", {}, set(), set()),
    ("gated_srms_norm", {}, set(), set()),
    ("_gated_srms_norm_backward", {}, set(), set()),
    ("srms_norm_quantized", {}, set(), {"ahead"}),
    ("srms_norm_quantized", {"residual_dtype": BFLOAT}, APART, set()),
]


@pytest.mark.parametrize(("operator", "options", "on_h100", "on_h200"), TAKEN)
def test_hints_of_a_card(operator, options, on_h100, on_h200):
    """At 4096 bfloat16, rows that move more than the L2 holds; fewer, or rows that lie anywhere, take none."""
    for gpu, want in ((H100, on_h100), (H200, on_h200), (A100, set()), (card(100, 148, 3996, 8192), set())):
        assert hints(operator, 4096, gpu=gpu, **options) == want
        assert hints(operator, 4096, gpu=gpu, rows=1 << 16, **options) == want
        assert hints(operator, 4096, gpu=gpu, rows=16, **options) == set()
    anywhere = {**options, "aligned": False}
    for gpu in (H100, H200):
        assert not hints(operator, 4096, gpu=gpu, **anywhere) & {*KEPT, *APART, "ahead"}


def test_blocks_are_kept_apart():
    """On an H100 by the width of a row, on an H200 by the speed of its memory; parked vectors on an H100 alone."""

    def apart(dim, *args, **options):
        found = [plan("srms_norm", dim, BFLOAT, *args, gpu=gpu, **options) for gpu in (H100, H200)]
        assert all((each["shared_bytes"] > 0) == (each["apart"] > 0) for each in found)
        return [each["apart"] for each in found]

    assert apart(4096, BFLOAT) == [3, 4] and apart(4096) == [6, 0]
    assert apart(512, BFLOAT) == apart(2048, BFLOAT) == [0, 0]
    assert apart(65_536, BFLOAT) == [4, 0] and apart(262_144, BFLOAT) == [0, 0]
    assert apart(131_072) == apart(131_072, out_dtype=FLOAT) == [4, 0]  # parked


def test_clusters_are_prefetched():
    assert [plan("srms_norm", 65_536, gpu=gpu)["ahead"] for gpu in (H100, H200)] == [16, 32]
    assert plan("_srms_norm_backward_input", 65_536, BFLOAT, grad_sum=True)["ahead"] == 10  # 4 MB beside few writes
    assert plan("_srms_norm_backward_input", 65_536, BFLOAT, grad_sum=True, gpu=H200)["ahead"] == 0
    assert plan("srms_norm", 65_536, gpu=A100)["ahead"] == 0
    assert [plan("rstd", 65_536, gpu=gpu)["ahead"] for gpu in (H100, H200)] == [32, 32]  # writes no row
    wide = plan("gated_srms_norm", 65_536, gate_dtype=FLOAT), plan("gated_srms_norm", 65_536)
    quantized = "srms_norm_quantized"  # 4 MB of 128 KB where that was measured, and 2 MB elsewhere or of 256
    others = card(100, 148, 3996, 8192)
    assert [plan(quantized, 65_536, gpu=gpu)["ahead"] for gpu in (H100, H200, others)] == [32, 32, 16]
    assert plan("add_srms_norm_quantized", 65_536)["ahead"] == 8
    assert [found["ahead"] for found in wide] == [10, 8]  # 4 MB of 384 KB, 2 MB of 256
    for read_twice in (plan("srms_norm", 65_536, in_phase=False), plan("srms_norm", 2**20)):
        assert read_twice["twice"] and read_twice["ahead"] == 0


def test_gated_rows_are_short_up_to_63():
    for dtype, longest in ((BFLOAT, 63), (FLOAT, 63)):
        for dim in range(57, 80, 2):
            assert (plan("gated_srms_norm", dim, dtype)["vectors"] == 0) == (dim <= longest)
            assert plan("_gated_srms_norm_backward", dim, dtype)["vectors"] > 0


def test_short_rows_are_prefetched():
    """Of large calls on an H200: rows that are no whole vectors, of one operand, and of a gradient's two of 16 bits;
    what is not the norm itself of 16 bits alone."""

    def ahead(operator, dim, *args, gpu=H200, **options):
        return plan(operator, dim, *args, gpu=gpu, **options)["ahead"]

    assert ahead("srms_norm", 33) == (4 << 20) // 66 and ahead("_srms_norm_backward_input", 33) == (2 << 20) // 132
    assert ahead("srms_norm", 33, gpu=H100) == ahead("srms_norm", 33, gpu=A100) == 0
    assert ahead("srms_norm", 33, BFLOAT, BFLOAT) == ahead("add_srms_norm", 33) == 0
    assert ahead("_srms_norm_backward_input", 33, BFLOAT, grad_sum=True) == 0
    assert ahead("_srms_norm_backward_input", 9, FLOAT) == 0 and ahead("srms_norm", 9, FLOAT) == (4 << 20) // 36
    assert ahead("_srms_norm_backward_pair", 33, residual_dtype=FLOAT) == 0
    for others in (ahead("rstd", 33), ahead("srms_norm", 33, out_dtype=FLOAT), ahead("srms_norm_quantized", 33)):
        assert others == ahead("srms_norm", 33)
    assert ahead("rstd", 17, FLOAT) == ahead("srms_norm_quantized", 17, FLOAT) == ahead("gated_srms_norm", 33) == 0
    assert ahead("srms_norm", 33, rows=1000) == ahead("srms_norm", 32) == ahead("srms_norm", 113) == 0
    assert ahead("srms_norm", 57) == (4 << 20) // 114 and ahead("_srms_norm_backward_input", 57) == 0


def test_rows_of_a_warp_are_not_prefetched():
    """Nor those that are kept, and those of fewer threads by what has threads then."""
    assert plan("srms_norm", 512, out_dtype=FLOAT, gpu=H200)["ahead"] == 0
    assert plan("srms_norm_quantized", 1024, gpu=H200)["ahead"] == 0  # a warp, folded
    assert plan("srms_norm_quantized", 2048, gpu=H200)["ahead"] == 1024
    pair = plan("_srms_norm_backward_pair", 4096, residual_dtype=FLOAT, gpu=H200)  # 4 bytes read, 6 written
    assert pair["kept"] and pair["ahead"] == 0


@pytest.mark.parametrize("gpu", CARDS.values(), ids=CARDS)
def test_the_plan_depends_on_the_largest_cluster_alone(gpu):
    for operator, dim in itertools.product(OPERATORS, (64, 4096, 16_384, 65_536, 2**20)):
        found = plan(operator, dim, gpu=gpu)
        assert found["cluster"] <= gpu.largest_cluster
        for rows in (1, 16, 1 << 20):
            assert numbers(plan(operator, dim, gpu=gpu, rows=rows)) == numbers(found)
        assert numbers(plan(operator, dim, max_cluster=gpu.largest_cluster)) == numbers(found)
        other = dataclasses.replace(gpu, multiprocessors=7, shared_bytes=1 << 10, l2_bytes=0, bandwidth=0)
        assert numbers(plan(operator, dim, gpu=other)) == numbers(found)


def test_without_a_gpu():
    found = srmsnorm.launch_plan("srms_norm", 4096, BFLOAT)
    if torch.cuda.is_available() and srmsnorm.build_info()["cuda"]:
        assert found == srmsnorm.launch_plan("srms_norm", 4096, BFLOAT, gpu=srmsnorm.gpu())
    else:
        assert set(found) == KEYS == set(srmsnorm.launch_plan("srms_norm", 4096, BFLOAT, rows=3))
        assert srmsnorm.launch_plan("srms_norm", 2**18, BFLOAT)["cluster"] == 16
    assert srmsnorm.launch_plan(operator="rstd", dim=64, dtype=FLOAT) == srmsnorm.launch_plan("rstd", 64, FLOAT)


def test_under_modes():
    """No tensor of the user's is there for a mode to see, and those of the plan are none of its business."""
    from torch._subclasses import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    class Refuses(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            raise AssertionError(func)

    want = plan("add_srms_norm", 4096)
    for mode in (FakeTensorMode(), Refuses(), torch.inference_mode(), torch.device("meta")):
        with mode:
            assert plan("add_srms_norm", 4096) == want
    assert torch.func.vmap(lambda x: (x, plan("rstd", 64))[0])(torch.ones(3)).shape == (3,)


def of_clusters(capability, largest):
    return dataclasses.replace(H100, capability=capability, largest_cluster=largest)


GPU_NUMBERS = "a GPU has 6 numbers, none negative"


@pytest.mark.parametrize(
    ("error", "message", "operator", "options"),
    [
        (ValueError, "operator must be one of srms_norm, add_srms_norm, .*, got '_library'", "_library", {}),
        (ValueError, "operator must be one of .*, got ''", "", {}),
        (RuntimeError, "dim must be at least 1, got 0", "srms_norm", {"dim": 0}),
        (ValueError, "rows must be at least 1, got 0", "srms_norm", {"rows": 0}),
        (ValueError, r"rows x dim must be at most 2\^56, got 1 x 1152921504606846976", "srms_norm", {"dim": 2**60}),
        (ValueError, r"rows x dim must be at most 2\^56, got 4611686018427387904 x 64", "rstd", {"rows": 2**62}),
        (RuntimeError, "expected float16, bfloat16, .*, got Char", "gated_srms_norm", {"dtype": torch.int8}),
        (RuntimeError, "residual must have the dtype of input, .*", "srms_norm", {"residual_dtype": HALF}),
        (RuntimeError, "gate must have the dtype of input, .*", "gated_srms_norm", {"gate_dtype": HALF}),
        (RuntimeError, "dtype must be float16, bfloat16 or float32", "srms_norm", {"out_dtype": DOUBLE}),
        (RuntimeError, "grad_output must be float32 .* got BFloat16", "_srms_norm_backward_of_input", {}),
        (RuntimeError, "a gradient in float32 needs a 16-bit", "_srms_norm_backward_residual", {"dtype": FLOAT}),
        (ValueError, "srms_norm takes no gate_dtype", "srms_norm", {"gate_dtype": BFLOAT}),
        (ValueError, "gated_srms_norm takes no residual_dtype", "gated_srms_norm", {"residual_dtype": BFLOAT}),
        (ValueError, "rstd takes no out_dtype", "rstd", {"out_dtype": BFLOAT}),
        (ValueError, "srms_norm_quantized takes no out_dtype", "srms_norm_quantized", {"out_dtype": FLOAT}),
        (ValueError, "srms_norm takes no grad_sum", "srms_norm", {"grad_sum": True}),
        (RuntimeError, "max_cluster must be from 1 to 16, got 17", "srms_norm", {"max_cluster": 17}),
        (RuntimeError, "largest_cluster must be from 1 to 16, got 0", "rstd", {"gpu": of_clusters(90, 0)}),
        (ValueError, "below 90 has no clusters, got capability 80 and .* 8", "rstd", {"gpu": of_clusters(80, 8)}),
        (ValueError, f"{GPU_NUMBERS}, got .*-5", "rstd", {"gpu": card(90, -5, 1, 1)}),
        (TypeError, "gpu must be a srmsnorm.Gpu or None, got tuple", "rstd", {"gpu": (90, 132)}),
        (TypeError, "argument 2 of launch_plan must be an int of 64 bits, got float", "rstd", {"dim": 4.5}),
        (TypeError, "argument 3 of launch_plan must be a torch.dtype, got str", "rstd", {"dtype": "bfloat16"}),
        (TypeError, "argument 12 of launch_plan must be a tuple of ints", "rstd", {"gpu": card(90, 2**70, 1, 1)}),
    ],
)  # fmt: skip
def test_errors(error, message, operator, options):
    with pytest.raises(error, match=f"^srmsnorm: .*{message}"):
        srmsnorm.launch_plan(operator, **{"dim": 64, "dtype": BFLOAT, **options})
    assert plan("srms_norm", 64)  # nothing is left behind


def test_a_gpu_is_a_value():
    assert card(90, 132, 2619, 5120) == H100 and H100 != H200 and len({H100, H200, A100}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        H100.capability = 100
    if not srmsnorm.build_info()["cuda"]:
        with pytest.raises(RuntimeError, match="^srmsnorm: this build has no CUDA"):
            srmsnorm.gpu(0)


# ---- on a GPU


def test_the_gpu_that_is_here(cuda):
    found, properties = srmsnorm.gpu(), torch.cuda.get_device_properties()
    assert found.capability == 10 * properties.major + properties.minor
    assert found.multiprocessors == properties.multi_processor_count and found.l2_bytes == properties.L2_cache_size
    assert found == srmsnorm.gpu("cuda") == srmsnorm.gpu(torch.device("cuda", 0)) == srmsnorm.gpu(0)
    assert srmsnorm.launch_plan("rstd", 64, FLOAT)["gpu"] == found
    with pytest.raises(ValueError, match="^srmsnorm: no CUDA device 99"):
        srmsnorm.gpu(99)


def calls(kind, shape, device):
    """(operator, options of its plan, a call of it), of all that launch one kernel."""
    ops = torch.ops.srmsnorm
    x, s = samples.forward(kind, shape, device)
    s = x.clone() if s is None else s
    gate, beside = samples.gated(kind, shape, device)[1], {"residual_dtype": s.dtype}
    y, rstd = ops._srms_norm(x, s, None)
    wide = ops._srms_norm(x, s, None, dtype="float32")[0] if kind.dtype != DOUBLE else y
    g, gs = samples.grad_output(kind, shape, device), samples.grad_sum(kind, shape, device)
    yield "srms_norm", {}, lambda: ops.srms_norm(x)
    yield "srms_norm", {"out_dtype": wide.dtype}, lambda: ops.srms_norm(x, dtype=samples.name(wide.dtype))
    yield "add_srms_norm", beside, lambda: ops.add_srms_norm(x, s)
    yield "add_srms_norm_", beside, lambda: ops.add_srms_norm_(x.clone(), s.clone())
    yield "_srms_norm_backward_input", {}, lambda: ops._srms_norm_backward_input(g, y, rstd)
    yield (
        "_srms_norm_backward_input",
        {"grad_sum": True, "residual_dtype": gs.dtype},
        lambda: ops._srms_norm_backward_input(g, y, rstd, gs),
    )
    yield "rstd", {}, lambda: ops.rstd(x)
    yield "_scale_rows", {}, lambda: ops._scale_rows(x, None, rstd)
    yield "gated_srms_norm", {"gate_dtype": gate.dtype}, lambda: ops.gated_srms_norm(x, gate)
    yield (
        "_gated_srms_norm_backward",
        {"gate_dtype": gate.dtype},
        lambda: ops._gated_srms_norm_backward(g, x, gate, rstd),
    )
    if kind.dtype != DOUBLE:
        yield "srms_norm_quantized", {}, lambda: ops.srms_norm_quantized(x)
        yield "add_srms_norm_quantized", beside, lambda: ops.add_srms_norm_quantized(x, s)


@pytest.mark.parametrize("dim", [512, 4096, 10_240, 65_536])
def test_blocks_of_a_captured_call_are_apart(cuda, dim, plain_memory):
    """By the shared memory that the plan tells; with the bits of the call."""
    input, residual = (torch.randn(2**25 // dim, dim, device=cuda).to(BFLOAT) for _ in range(2))
    want = srmsnorm.add_srms_norm(input, residual)
    graph, got = captured(lambda: srmsnorm.add_srms_norm(input, residual))
    (launch,) = launches(graph)
    assert launch.shared == srmsnorm.launch_plan("add_srms_norm", dim, BFLOAT)["shared_bytes"]
    graph.replay()
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize("dim", [7, 100, 1000, 4096, 16_384, 65_536])
@pytest.mark.parametrize("kind", [Kind(BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT), Kind(DOUBLE)], ids=str)
def test_every_operator_launches_its_plan(cuda, kind, dim, plain_memory, tmp_path):
    for operator, options, call in calls(kind, (5, dim), cuda):
        found = srmsnorm.launch_plan(operator, dim, kind.dtype, **options, rows=5)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
        profile.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        (launch,) = [event["args"] for event in events if "row_kernel" in event.get("name", "")]
        block = [found["threads_per_row"], found["rows_per_block"], 1] if found["vectors"] else [128, 1, 1]
        assert launch["block"] == block, operator
        assert launch["grid"] == [-(-5 // found["rows_per_block"]) * found["cluster"], 1, 1], operator
