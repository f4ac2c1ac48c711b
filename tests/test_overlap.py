"""add_srms_norm_ overwrites views of one storage that share no byte, and no others: against sets of bytes."""

import random

import numpy as np
import pytest
import samples
import torch
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind

import srmsnorm

KINDS = [Kind(FLOAT, FLOAT), Kind(BFLOAT, BFLOAT), Kind(DOUBLE, DOUBLE), Kind(BFLOAT, FLOAT), Kind(HALF, FLOAT)]
BYTES = 4096


def view(storage, dtype, sizes, strides, offset):
    """Of a storage of bytes; strides and offset in elements."""
    return storage.view(dtype).as_strided(sizes, strides, offset)


def bytes_of(dtype, sizes, strides, offset):
    """Of every element, those that elements share more than once."""
    places = np.array([offset])
    for size, stride in zip(sizes, strides, strict=True):
        places = (places[:, None] + stride * np.arange(size)).ravel()
    return (places[:, None] * dtype.itemsize + np.arange(dtype.itemsize)).ravel()


def reach(sizes, strides):
    return sum(stride * (size - 1) for size, stride in zip(sizes, strides, strict=True))


def fits(dtype, sizes, strides, offset):
    return (offset + reach(sizes, strides) + 1) * dtype.itemsize <= BYTES


def draw(rng, dtype, sizes, unit):
    """Strides that nest, or any, of a common unit or none, also of dimensions of size 1."""
    strides, step = [1], sizes[-1]
    for size in sizes[-2::-1]:
        regular = rng.random() < 0.7
        stride = unit * -(-step // unit) * rng.choice([1, 1, 2, 3]) if regular else rng.randrange(0, 3 * step + 2)
        strides.append(rng.randrange(100) if size == 1 else stride)
        step = max(step, stride * size)
    strides = strides[::-1]
    return dtype, sizes, strides, rng.randrange(2 * reach(sizes, strides) + 4)


def pairs(kind, count):
    rng = random.Random(str(kind))
    while count:
        sizes = [rng.randint(1, 4) for _ in range(rng.randint(0, 3))] + [rng.randint(1, 5)]
        unit = rng.choice([1, 2, 4, 6])
        drawn = [draw(rng, dtype, sizes, unit) for dtype in (kind.dtype, kind.residual)]
        if rng.random() < 0.4:  # of one layout, as parts of a packed tensor are
            wide = kind.residual.itemsize // kind.dtype.itemsize
            strides = [-(-stride // wide) for stride in drawn[0][2][:-1]] + [1]
            drawn[0] = (kind.dtype, sizes, [stride * wide for stride in strides[:-1]] + [1], drawn[0][3])
            drawn[1] = (kind.residual, sizes, strides, rng.randrange(40))
        if all(fits(*each) for each in drawn):
            count -= 1
            yield drawn


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_pairs_of_views(kind):
    """An error where a byte is shared, of one view alone or between them, else the sum: 2000 pairs each."""
    seen = {"one": 0, "both": 0, "interleaved": 0, "apart": 0}
    noise = samples.values((BYTES // 8,), DOUBLE).to(FLOAT).repeat(2).view(torch.uint8)
    for pair in pairs(kind, 2000):
        storage = noise.clone()
        touched = [bytes_of(*each) for each in pair]
        input, residual = (view(storage, *each) for each in pair)
        alone = all(len(np.unique(each)) == len(each) for each in touched)
        shared = len(np.intersect1d(*touched)) > 0
        a, b = touched
        ranges = a.max() < b.min() or b.max() < a.min()
        seen["one" if not alone else "both" if shared else "apart" if ranges else "interleaved"] += 1
        if alone and not shared:
            want = srmsnorm.add_srms_norm(input, residual)
            srmsnorm.add_srms_norm_(input, residual)
            torch.testing.assert_close((input, residual), want, rtol=1e-2, atol=1e-2, equal_nan=True)
            storage[np.concatenate(touched)] = noise[np.concatenate(touched)]
            assert torch.equal(storage, noise)
            continue
        words = "elements of one overlap" if not alone else "they overlap"
        with pytest.raises(RuntimeError, match=f"srmsnorm: .* {words} in memory"):
            srmsnorm.add_srms_norm_(input, residual)
        assert torch.equal(storage, noise)
    assert min(seen.values()) > 100, seen


@pytest.mark.parametrize("dtype", [HALF, BFLOAT, FLOAT], ids=str)
def test_one_byte(dtype):
    """Shared at either end, by operands at odd addresses, as of a file that is mapped or received."""
    buffer = bytearray(samples.values((200,), FLOAT).numpy().tobytes())
    before = bytes(buffer)
    size = 16 * dtype.itemsize
    for start in (101 + size - 1, 101 - 16 * 4 + 1):
        input = torch.frombuffer(buffer, dtype=dtype, count=16, offset=101)
        residual = torch.frombuffer(buffer, dtype=FLOAT, count=16, offset=start)
        for operands in ((input, residual),) if dtype != FLOAT else ((input, residual), (residual, input)):
            with pytest.raises(RuntimeError, match="srmsnorm: .* they overlap in memory"):
                srmsnorm.add_srms_norm_(*operands)
    assert bytes(buffer) == before


def test_limit():
    """Strides so irregular that telling would take long: refused, and said so."""
    storage = torch.zeros(1 << 20)
    input = storage.as_strided((40, 36, 10, 17, 1), (5440, 7283, 8089, 4713, 1))
    with pytest.raises(RuntimeError, match="srmsnorm: .*may overlap in memory .*too irregular"):
        srmsnorm.add_srms_norm_(input, torch.ones(input.shape))
    assert not storage.any()


PACKED = [
    ((2, 5, 3, 4, 8), lambda qkv: (qkv[:, :, 0], qkv[:, :, 2])),  # q and v
    ((2, 5, 3, 4, 8), lambda qkv: (qkv[:, :, 0].transpose(1, 2), qkv[:, :, 1].transpose(1, 2))),
    ((2, 5, 6, 8), lambda qkv: (qkv[:, :, ::2], qkv[:, :, 1::2])),
    ((4, 5, 16), lambda x: (x[::2, :, :8], x[1::2, :, 8:])),
    ((1, 40, 8), lambda x: (x[:, :20:2], x.transpose(0, 1).as_strided((1, 10, 8), (3, 16, 1), 8))),  # odd stride of 1
    ((100_003, 24), lambda x: (x[:, :8], x[:, 8:16])),
]


@pytest.mark.parametrize(("shape", "split"), PACKED)
def test_views_side_by_side(device, shape, split):
    base = samples.values(shape, FLOAT, device)
    input, residual = split(base)
    want = srmsnorm.add_srms_norm(input.clone(), residual.clone())
    srmsnorm.add_srms_norm_(input, residual)
    torch.testing.assert_close((input, residual), want)


@pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)
def test_a_16_bit_input_interleaved_with_its_float32_stream(device, dtype):
    """Row by row in one buffer."""
    rows = torch.zeros(7, 6 * 16, dtype=torch.uint8, device=device)
    input, residual = rows[:, : 2 * 16].view(dtype), rows[:, 2 * 16 :].view(FLOAT)
    input.copy_(samples.values((7, 16), dtype, device))
    residual.copy_(samples.values((7, 16), FLOAT, device, name="residual"))
    want = srmsnorm.add_srms_norm(input.clone(), residual.clone())
    srmsnorm.add_srms_norm_(input, residual)
    torch.testing.assert_close((input, residual), want)
