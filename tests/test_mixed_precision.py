"""What FSDP's mixed precision makes of a float32 residual stream, as docs/distributed.md says."""

import fresh
import pytest
import torch

PROGRAM = """
import torch, torch.distributed as dist, srmsnorm
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = srmsnorm.SRMSNorm(8), torch.nn.Linear(8, 8)

    def forward(self, x, stream):
        seen.append((x.dtype, stream.dtype))
        y, stream = self.norm(x, stream, return_sum=True)
        return self.linear(y), stream

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.blocks = torch.nn.Linear(8, 8), torch.nn.ModuleList([Block(), Block()])

    def forward(self, x):
        x = self.embedding(x)
        stream = torch.zeros_like(x, dtype=torch.float32)
        for block in self.blocks:
            x, stream = block(x, stream)
        return x + stream

dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh, seen = init_device_mesh("cpu", (1,)), []
model = Model()
for block in model.blocks:
    fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16, cast_forward_inputs={cast}))
fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(torch.bfloat16))
model(torch.randn(4, 8)).sum().backward()
assert seen == [(torch.bfloat16, torch.{stream})] * 2, seen
assert all(p.grad is not None for p in model.parameters())
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize(("cast", "stream"), [(True, "bfloat16"), (False, "float32")])
def test_float32_stream(cast, stream):
    done = fresh.run(PROGRAM.format(cast=cast, stream=stream), timeout=300)
    assert done.returncode == 0, done.stderr
