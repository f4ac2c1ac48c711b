"""torch.library.opcheck of every operator, on the matrix of samples."""

import pytest
import samples
import saved_programs
import torch
from samples import BFLOAT, DOUBLE, FLOAT, HALF, Kind

ops = torch.ops.srmsnorm
SHAPE = (3, 16)


def names(kind):
    return list(dict.fromkeys(name for name, *_ in samples.calls(kind, SHAPE)))


NAMES = names(Kind(DOUBLE, DOUBLE))
MIXED_ONLY = [name for name in names(Kind(BFLOAT, FLOAT)) if name not in NAMES]


def check(name, kind, shape, device, *, layout=samples.contiguous, all_masks=False):
    """How many samples there were. With all operands requiring grad, or with every choice of them that do."""
    checked = 0
    for op, args, kwargs in samples.calls(kind, shape, device, layout=layout):
        if op != name:
            continue
        masks = list(samples.requiring_grad(args))
        for given in masks[:1] if name == "add_srms_norm_" else masks if all_masks else masks[-1:]:
            torch.library.opcheck(getattr(ops, name).default, given, kwargs)
            checked += 1
    return checked


EVERYWHERE = [
    (name, kind)
    for kind in (Kind(FLOAT, FLOAT), Kind(BFLOAT, FLOAT))
    for name in NAMES + MIXED_ONLY
    if kind in samples.MIXED or name not in MIXED_ONLY
]


@pytest.mark.parametrize(("name", "kind"), EVERYWHERE, ids=str)
def test_gradients(device, name, kind):
    assert check(name, kind, SHAPE, device, all_masks=True)


@pytest.mark.parametrize("name", NAMES + MIXED_ONLY)
def test_shapes(device, name):
    for shape in ((8,), (2, 3, 5), (0, 8), (2, 0, 8)):
        assert check(name, Kind(BFLOAT, FLOAT), shape, device)


@pytest.mark.parametrize("layout", [samples.padded, samples.transposed, samples.every_other], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NAMES + MIXED_ONLY)
def test_layouts(device, layout, name):
    if name == "add_srms_norm_" and layout in samples.COPIED:
        pytest.skip("in place, such operands are refused: test_errors.py")
    assert check(name, Kind(HALF, FLOAT), (2, 3, 16), device, layout=layout)


@pytest.mark.parametrize("name", NAMES)
def test_float64(device, name):
    assert check(name, Kind(DOUBLE, DOUBLE), SHAPE, device)


def test_every_operator_is_checked():
    """But those of quantised results: test_quantized_modes.py."""
    kept = {line.split("(")[0].removeprefix("srmsnorm::") for line in saved_programs.SCHEMAS.read_text().splitlines()}
    assert {*NAMES, *MIXED_ONLY} == {name for name in kept if "quantized" not in name}
