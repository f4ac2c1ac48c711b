"""DTensor, on the first of two ranks whose collectives are counted and do nothing."""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .candidates import Candidate
from .feature import Group, data, formula, need, same

FEATURES = Group("DTensor")


@contextmanager
def two_ranks(device: str) -> Iterator[Any]:
    """The first of two ranks; collectives are counted and do nothing."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.testing._internal.distributed.fake_pg import FakeStore

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if importlib.util.find_spec("srmsnorm.distributed"):
            importlib.import_module("srmsnorm.distributed")  # registers its rules
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
        try:
            yield init_device_mesh(device, (2,))
        finally:
            dist.destroy_process_group()


def sharded(c: Candidate, device: str, dim: int | None) -> int:
    """How many collectives a norm and its gradient take; where none is needed, the results of this rank are right."""
    from torch.distributed.tensor import DTensor, Replicate, Shard
    from torch.distributed.tensor.debug import CommDebugMode

    with two_ranks(device) as mesh:
        placement = Replicate() if dim is None else Shard(dim)
        x = DTensor.from_local(data(device), mesh, [placement], run_check=False).requires_grad_()
        with CommDebugMode() as count:
            y = c.norm(x)
            (gradient,) = torch.autograd.grad(y, x, DTensor.from_local(data(device, seed=1), mesh, [placement]))
        assert isinstance(y, DTensor) and isinstance(gradient, DTensor), f"returned a {type(y).__name__}"
        if dim is None or dim == 0:
            need(y.placements == gradient.placements == (placement,), f"placed {y.placements}, {gradient.placements}")
            leaf = data(device).requires_grad_()
            want = formula(leaf)
            same(y.to_local(), want)
            same(gradient.to_local(), torch.autograd.grad(want, leaf, data(device, seed=1))[0])
        return int(count.get_total_counts())


@FEATURES.feature("sharded by rows: no communication", alone=True)
def sharded_by_rows(c: Candidate, device: str) -> None:
    count = sharded(c, device, 0)
    need(count == 0, f"{count} collectives")


@FEATURES.feature("replicated stays replicated", alone=True)
def replicated(c: Candidate, device: str) -> None:
    count = sharded(c, device, None)
    need(count == 0, f"{count} collectives")
