"""A NaN or an inf stays in its row; out of memory, interrupts and launches that fail leave nothing behind."""

import gc
import pathlib
import signal
import weakref

import failing
import fresh
import pytest
import samples
import torch
from samples import BFLOAT, FLOAT, HALF, Kind

import srmsnorm
from srmsnorm import reference

KINDS = [Kind(HALF), Kind(BFLOAT, BFLOAT), Kind(BFLOAT, FLOAT), Kind(FLOAT, FLOAT), Kind(samples.DOUBLE)]
TESTS = str(pathlib.Path(__file__).parent)
ROWS = 37
BAD = 16
FAULTS = [float("nan"), float("inf"), float("-inf")]


def dims(device):
    return (1, 3, 8, 33, 64, 500, 2048, 3001) + ((16_384, 65_536, 131_073, 262_144) if device == "cuda" else ())


def broken(tensor, fault):
    tensor = tensor.clone()
    tensor[BAD, tensor.shape[-1] // 2] = fault
    return tensor


def assert_neighbours(got, want):
    others = torch.arange(ROWS) != BAD
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a.cpu()[others], b.cpu()[others])
        assert b.isfinite().all()


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forward(device, kind, fault):
    for dim in dims(device):
        input, residual = samples.forward(kind, (ROWS, dim), device)
        if residual is None:
            call = lambda t: torch.ops.srmsnorm._srms_norm(t, None, 1e-6)  # noqa: E731
        else:
            call = lambda t: torch.ops.srmsnorm._add_srms_norm(t, residual, 1e-6)  # noqa: B023, E731
        bad = broken(input, fault)
        got = call(bad)
        assert_neighbours(got, call(input))
        expected = reference.srms_norm(bad, residual, eps=1e-6)[BAD]
        assert torch.equal(got[0][BAD].isnan(), expected.isnan())
        assert torch.equal(got[0][BAD].nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.residual], ids=str)
def test_fault_in_the_residual(device, kind, fault):
    for dim in dims(device):
        input, residual = samples.forward(kind, (ROWS, dim), device)
        bad = broken(residual, fault)
        got = srmsnorm.add_srms_norm(input, bad)
        assert_neighbours(got, srmsnorm.add_srms_norm(input, residual))
        srmsnorm.add_srms_norm_(input, bad)
        for a, b in zip((input, bad), got, strict=True):
            assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize("where", [0, 1, 2, 3])
@pytest.mark.parametrize("fault", FAULTS[:2], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_backward(device, kind, fault, where):
    """In grad_output, output, rstd or grad_sum."""
    for dim in dims(device):
        shape = (ROWS, dim)
        output, rstd = torch.ops.srmsnorm._srms_norm(*samples.forward(kind, shape, device), 1e-6)
        operands = [samples.grad_output(kind, shape, device), output, rstd, samples.grad_sum(kind, shape, device)]
        want = torch.ops.srmsnorm._srms_norm_backward(*operands)
        operands[where] = operands[where].clone()
        operands[where][BAD] = fault
        got = torch.ops.srmsnorm._srms_norm_backward(*operands)
        assert_neighbours([got], [want])
        assert not got[BAD].isfinite().any()


# Out of memory, at each allocation of a call


@pytest.fixture(scope="session")
def failing_library(tmp_path_factory):
    return failing.compiled(tmp_path_factory.mktemp("failing"))


@pytest.mark.parametrize("kind", [Kind(BFLOAT, FLOAT), Kind(samples.DOUBLE)], ids=str)
def test_out_of_memory(failing_library, kind, plain_memory):
    allocator = failing.load(failing_library)
    allocator.install()
    try:
        assert failing.check(allocator, kind, "cpu") > 20
    finally:
        allocator.uninstall()


def test_out_of_memory_on_a_gpu(cuda, failing_library):
    program = f"import sys; sys.path.append({TESTS!r}); import failing; failing.check_on_gpu({str(failing_library)!r})"
    done = fresh.run(program)
    assert done.returncode == 0, done.stderr


# An interrupt


@pytest.mark.parametrize("kind", [Kind(FLOAT), Kind(BFLOAT, FLOAT)], ids=str)
def test_interrupt_in_backward(device, kind):
    """Raised in the engine's thread, before and behind the norm's node."""
    operands = [t for t in samples.forward(kind, (5, 64), device) if t is not None]
    g = samples.grad_output(kind, (5, 64), device)

    def interrupt(_):
        raise KeyboardInterrupt

    def backward(where=None):
        leaves = [t.clone().requires_grad_() for t in operands]
        inputs = [t * 1 for t in leaves]
        y = srmsnorm.srms_norm(*inputs)
        if where is not None:
            (y, *inputs)[where].register_hook(interrupt)
        try:
            y.backward(g)
        finally:
            grads.append([t.grad for t in leaves])
            watched.extend(weakref.ref(t) for t in (y, *inputs))

    grads, watched = [], []
    backward()
    for where in range(1 + len(operands)):
        with pytest.raises(KeyboardInterrupt):
            backward(where)
        backward()
        assert all(torch.equal(a, b) for a, b in zip(grads[-1], grads[0], strict=True))
    gc.collect()
    assert all(ref() is None for ref in watched)


@pytest.mark.parametrize("where", ["forward", "in place", "backward"])
def test_interrupt_at_any_time(device, where, plain_memory):
    """By a timer: a call has been made or not, its operands are of before or after, and the next one is right."""
    kind = Kind(FLOAT, FLOAT)
    operands = samples.forward(kind, (64, 512), device)
    g = samples.grad_output(kind, (64, 512), device)
    done = list(srmsnorm.add_srms_norm(*operands))

    def backward():
        leaf = operands[0].clone().requires_grad_()
        srmsnorm.srms_norm(leaf, operands[1]).backward(g)
        return leaf.grad

    def interrupt(*_):
        raise KeyboardInterrupt

    want, previous = backward(), signal.signal(signal.SIGALRM, interrupt)
    interrupts = 0
    try:
        for step in range(60):
            copies = [t.clone() for t in operands]
            try:
                signal.setitimer(signal.ITIMER_REAL, 20e-6 * (1 + step), 0.1)  # again, should a destructor swallow it
                while True:
                    if where == "forward":
                        srmsnorm.add_srms_norm(*copies)
                    elif where == "backward":
                        backward()
                    else:
                        for to, value in zip(copies, operands, strict=True):
                            to.copy_(value)
                        srmsnorm.add_srms_norm_(*copies)
            except KeyboardInterrupt:
                signal.setitimer(signal.ITIMER_REAL, 0)
                interrupts += 1
            if where == "in place":
                before = [torch.equal(a, b) for a, b in zip(copies, operands, strict=True)]
                after = [torch.equal(a, b) for a, b in zip(copies, done, strict=True)]
                # Between the two copies one is of before and the other still of after.
                assert all(a or b for a, b in zip(before, after, strict=True)), (before, after)
            else:
                assert all(torch.equal(a, b) for a, b in zip(copies, operands, strict=True))
            assert torch.equal(backward(), want)
            assert all(torch.equal(a, b) for a, b in zip(srmsnorm.add_srms_norm(*operands), done, strict=True))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert interrupts == 60


# A launch that fails, and the error of another

PREPARE = """
import ctypes, torch, srmsnorm
runtime = ctypes.CDLL("libcudart.so." + torch.version.cuda.split(".")[0])
x, stream = (torch.randn(4, {dim}, device="cuda") for _ in range(2))
want = [t.clone() for t in srmsnorm.add_srms_norm(x, stream)]
before = [x.clone(), stream.clone()]
torch.cuda.synchronize()
"""
OF_ANOTHER = """
for _ in range(2):
    assert runtime.cudaSetDevice(1000) == 101  # invalid device: the error of somebody who did not look
    got = srmsnorm.add_srms_norm(x, stream)
    assert runtime.cudaPeekAtLastError() == 101, "swallowed"
    assert runtime.cudaGetLastError() == 101
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want))
"""
IN_A_BROKEN_CAPTURE = """
graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
allocated = torch.cuda.memory_allocated()
with torch.cuda.stream(side):
    graph.capture_begin()
    assert runtime.cudaDeviceSynchronize() != 0  # not while a stream is captured: that capture is void
    runtime.cudaGetLastError()
    for call in (srmsnorm.add_srms_norm_, srmsnorm.add_srms_norm):
        try:
            call(x, stream)
        except RuntimeError as error:
            assert "captur" in str(error), error
        else:
            raise AssertionError("launched")
    try:
        graph.capture_end()
    except RuntimeError:
        pass
del graph
torch.cuda.synchronize()
assert all(torch.equal(a, b) for a, b in zip((x, stream), before))
got = srmsnorm.add_srms_norm(x, stream)
assert all(torch.equal(a, b) for a, b in zip(got, want))
srmsnorm.add_srms_norm_(x, stream)
assert all(torch.equal(a, b) for a, b in zip((x, stream), want))
assert runtime.cudaGetLastError() == 0
"""
AFTER_A_BROKEN_KERNEL = """
torch.zeros(4, device="cuda")[torch.tensor([10], device="cuda")]
try:
    torch.cuda.synchronize()
except RuntimeError as error:
    assert "assert" in str(error), error
for call in (srmsnorm.add_srms_norm_, srmsnorm.add_srms_norm, lambda *_: srmsnorm.srms_norm(x)):
    try:
        call(x, stream)
    except RuntimeError as error:
        assert "CUDA error" in str(error) and "assert" in str(error), error
    else:
        raise AssertionError("not reported")
"""


@pytest.mark.parametrize("dim", [64, 4096, 262_144])
@pytest.mark.parametrize(
    "fault",
    [OF_ANOTHER, IN_A_BROKEN_CAPTURE, AFTER_A_BROKEN_KERNEL],
    ids=["of another", "in a broken capture", "after a broken kernel"],
)
def test_failing_launches(cuda, fault, dim):
    """An error that others left is neither ours nor swallowed; a launch that fails is reported, and leaves the operands
    as they were and no state; after a kernel that broke the context, all calls say so."""
    done = fresh.run(PREPARE.format(dim=dim) + fault)
    assert done.returncode == 0, done.stderr
