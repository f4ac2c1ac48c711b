"""Hashes of the bits of every operator's results, over kinds, shapes and layouts. A change that must change no bits
prints the same before and after it: ``python tests/bits.py > before``. ATEN_CPU_CAPABILITY=default|avx2|avx512 chooses
the CPU's instructions, ``--device cuda`` the GPU."""

import argparse
import hashlib

import numpy as np
import samples
import torch

import srmsnorm  # noqa: F401  registers the operators

WIDE = [(2, 1, 3, 33, 1), (3, 4097), (2, 16384), (2, 20000), (1, 65536), (2, 131072), (1, 300001)]

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensors) -> str:
    found = hashlib.sha1()
    for tensor in tensors:
        found.update(f"{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}".encode())
        found.update(np.ascontiguousarray(tensor.cpu().view(INTEGERS[tensor.itemsize]).numpy()).tobytes())
    return found.hexdigest()[:12]


def results(op, args, kwargs):
    """What the operator returns, and what it leaves in its operands."""
    returned = op(*args, **kwargs)
    returned = () if returned is None else (returned,) if isinstance(returned, torch.Tensor) else returned
    return [*returned, *(arg for arg in args if isinstance(arg, torch.Tensor))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    for kind in samples.KINDS:
        for layout in [*samples.READABLE, *samples.COPIED]:
            found = {}
            for shape in [*samples.SHAPES, *samples.EMPTY_SHAPES, *WIDE]:
                if layout is samples.expanded and 0 in shape:
                    continue
                for name, args, kwargs in samples.calls(kind, shape, device, layout=layout):
                    op = getattr(torch.ops.srmsnorm, name)
                    found.setdefault(name, []).append(digest(results(op, args, kwargs)))
            for name, digests in found.items():
                print(f"{kind!s:10} {layout.__name__:12} {name:28} {combined(digests)}")


def combined(digests) -> str:
    return hashlib.sha1("".join(digests).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
