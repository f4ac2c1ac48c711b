"""In training: autocast, checkpoints, what is kept, bits, strides; and inference mode."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .candidates import Candidate
from .feature import Group, Log, data, formula, need, same, training

FEATURES = Group("training")


@FEATURES.feature("autocast leaves dtypes alone")
def autocast(c: Candidate, device: str) -> None:
    with torch.autocast(device, dtype=torch.bfloat16):
        for dtype in (torch.bfloat16, torch.float32):
            y = c.norm(data(device).to(dtype))
            need(y.dtype == dtype, f"{dtype} became {y.dtype}")


@FEATURES.feature("activation checkpoint")
def activation_checkpoint(c: Candidate, device: str) -> None:
    from torch.utils.checkpoint import checkpoint

    checkpointed = lambda x: checkpoint(c.norm, x, use_reentrant=False)  # noqa: E731
    same(training(checkpointed, data(device)), training(formula, data(device)))


@FEATURES.feature("selective checkpoint: one operator to name")
def selective_checkpoint(c: Candidate, device: str) -> None:
    from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

    seen = []

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        seen.append(op)
        return CheckpointPolicy.MUST_SAVE

    x = data(device).requires_grad_()
    y = checkpoint(c.norm, x, use_reentrant=False, context_fn=partial(create_selective_checkpoint_contexts, policy))
    forward = list(seen)
    with Log() as log:
        same(torch.autograd.grad(y.pow(3).sum(), x)[0], training(formula, data(device))[1])
    need(len(forward) == 1, f"a policy sees {len(forward)} operators")
    need(forward[0] not in log.calls, "computed again although saved")


@FEATURES.feature("backward keeps y and 4 bytes a row")
def kept_for_backward(c: Candidate, device: str) -> None:
    kept: list[Tensor] = []
    pack = lambda t: kept.append(t) or t  # type: ignore[func-returns-value]  # noqa: E731
    x = data(device, 64, 256).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = c.norm(x)
    more = {t.data_ptr(): t.numel() * t.itemsize for t in kept if t.data_ptr() != y.data_ptr()}
    need(sum(more.values()) <= 4 * 64, f"keeps {sum(more.values()) // 64} bytes a row beside y")


@FEATURES.feature("same row, same bits, whatever the number of rows")
def same_row_same_bits(c: Candidate, device: str) -> None:
    for dim in (100, 1000, 4096, 16384):
        x = data(device, 512, dim).bfloat16()
        whole = training(c.norm, x)
        for part in (slice(0, 1), slice(16, 33), slice(256, 512)):
            for got, want in zip(training(c.norm, x[part]), whole, strict=True):
                need(torch.equal(got, want[part]), f"not at dim {dim}")


@FEATURES.feature("strided rows without a copy")
def strided_rows(c: Candidate, device: str) -> None:
    x = data(device, 64, 3 * 256)[:, 256:512]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        y = c.norm(x)
    same(y, formula(x))
    copies = {e.name for e in profile.events()} & {"aten::copy_", "aten::contiguous", "aten::clone"}
    need(not copies, f"calls {', '.join(sorted(copies))}")


@FEATURES.feature("deterministic mode")
def deterministic_mode(c: Candidate, device: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (training(c.norm, data(device)) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    need(all(map(torch.equal, first, second)), "two runs differ")


@FEATURES.feature("inference mode")
def inference_mode(c: Candidate, device: str) -> None:
    with torch.inference_mode():
        same(c.norm(data(device)), formula(data(device)))
