"""The fuzzer finds what is planted, passes what is right, and repeats a call from its two numbers."""

import contextlib
import dataclasses

import fuzz
import fuzz_calls
import fuzz_memory
import pytest
import torch

import srmsnorm

SEED, CALLS = 2026, 400
RIGHT = fuzz_calls.Call.invoke


@pytest.fixture(scope="module")
def pool():
    return fuzz_memory.Pool("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def failures(pool, calls=CALLS):
    """One after the other, as they are found."""
    tally = fuzz.Tally()
    for index in range(calls):
        tally.run(fuzz_calls.draw(SEED, index, wide=0.0, compiled=0.0), pool)
        yield from tally.failures
        tally.failures.clear()


def test_nothing_is_found(pool):
    assert list(failures(pool)) == []


def test_the_two_numbers_repeat_a_call(pool):
    for index in (3, 44, 101):
        first, second = (fuzz_calls.draw(SEED, index) for _ in range(2))
        assert first == second and first != fuzz_calls.draw(SEED + 1, index)
        memories = [fuzz_memory.Memory(call, pool) for call in (first, second)]
        for name, tensor in memories[0].operands.items():
            assert torch.equal(tensor.nan_to_num(), memories[1].operands[name].nan_to_num())


# ---- faults: an operator that is wrong now and then, and what the fuzzer says of it


def wrong_last_element(call, t):
    results = RIGHT(call, t)
    if call.shape[-1] % 8 == 5 and results[0].numel() and call.mode == "plain":
        results[0][..., -1] *= 1.02
    return results


def strides_of_zero_not_minded(call, t):
    """A gradient that is one row for all is read as if it were rows of its own."""
    g = t.get("grad_output")
    if g is not None and g.dim() == 2 and g.stride(0) == 0 and g.shape[0] > 1:
        t = {**t, "grad_output": torch.stack([g[0], *g[1:].roll(1, -1)])}
    return RIGHT(call, t)


def eps_left_out(call, t):
    return RIGHT(dataclasses.replace(call, eps=None), t)


def sum_rounded_before_the_norm(call, t):
    results = RIGHT(call, t)
    if call.operator == "add_srms_norm" and call.mode == "plain":
        results[0].copy_(srmsnorm.srms_norm(results[1].to(call.dtype), eps=call.eps))
    return results


def rounded_to_the_input_first(call, t):
    results = RIGHT(call, t)
    if call.operator in ("srms_norm", "_srms_norm") and call.to == torch.float32 and call.dtype != call.to:
        results[0].copy_(RIGHT(dataclasses.replace(call, to=None), t)[0])
    return results


def factor_left_out(call, t):
    return RIGHT(call, {name: tensor for name, tensor in t.items() if name != "factor"})


def one_element_too_many(call, t):
    results = RIGHT(call, t)
    if call.operator == "add_srms_norm_" and call.mode == "plain" and results[1].numel():
        last = sum((n - 1) * stride for n, stride in zip(results[1].shape, results[1].stride(), strict=True))
        results[1].as_strided((1,), (1,), results[1].storage_offset() + last + 1).zero_()
    return results


def never_written(call, t):
    """What is allocated is NaN until it is written."""
    results = RIGHT(call, t)
    return (torch.empty_like(results[0]), *results[1:]) if call.operator.endswith("pair") else results


def another_row_of_a_call(call, t):
    """By a unit in the last place, which no bound on values forbids."""
    results = RIGHT(call, t)
    if call.mode == "plain" and results[0].dim() == 2 and call.dtype == torch.float32:
        results[0][1:] = torch.nextafter(results[0][1:], torch.full_like(results[0][1:], torch.inf))
    return results


def an_operand_written(call, t):
    results = RIGHT(call, t)
    if call.operator == "_srms_norm_backward" and call.mode == "plain":
        t["output"].flatten()[:1].zero_() if t["output"].is_contiguous() else None
    return results


def overlap_not_minded(call, t):
    if call.operator != "add_srms_norm_":
        return RIGHT(call, t)
    with contextlib.suppress(RuntimeError):
        RIGHT(call, t)
    return tuple(t.values())


def tangent_halved(call, t):
    results = RIGHT(call, t)
    return tuple(tensor / 2 for tensor in results) if call.mode == "tangents" else results


FAULTS = {
    wrong_last_element: "of the bound",
    strides_of_zero_not_minded: "of the bound",
    eps_left_out: "of the bound",
    sum_rounded_before_the_norm: "of the bound",
    rounded_to_the_input_first: "of the bound",
    factor_left_out: "not equal to what it should be",
    one_element_too_many: "bytes beside the operands",
    never_written: "nan for",
    another_row_of_a_call: "alone has other bits",
    an_operand_written: "an operand is written",
    overlap_not_minded: "operands that overlap are not refused",
    tangent_halved: "tangent of output",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_planted_fault_is_found(pool, monkeypatch, fault):
    monkeypatch.setattr(fuzz_calls.Call, "invoke", fault)
    assert any(FAULTS[fault] in message for _, _, message in failures(pool, 5 * CALLS))
