"""inline_under_compile("auto") from process to process: caches on disk, what it costs those who do not ask, and where
PyTorch has moved."""

import json

import fresh
import pytest

CACHED = """
import json, sys
import torch, srmsnorm
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

found = []
for factor, choice in json.loads('{plan}'):
    torch._dynamo.reset()
    counters.clear()
    function = lambda x: srmsnorm.srms_norm(x) * factor
    with srmsnorm.inline_under_compile(choice), torch.no_grad():
        _, code = run_and_get_code(torch.compile(function, fullgraph=True), torch.ones(6, 512))
    found.append(["torch.ops.srmsnorm.srms_norm.default(" in code[0], counters["inductor"]["fxgraph_cache_hit"]])
print(json.dumps(found))
"""


def test_caches_on_disk(tmp_path):
    """Two processes: neither finds the other choice's code, and the second finds the first one's of its own."""

    def found(plan):
        program = CACHED.format(plan=json.dumps(plan))
        done = fresh.run(program, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), TORCHINDUCTOR_FORCE_DISABLE_CACHES="0")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert found([(2, "auto"), (3, False)]) == [[False, 0], [True, 0]]
    assert found([(2, False), (3, "auto"), (2, "auto"), (3, False)]) == [[True, 0], [False, 0], [False, 1], [True, 1]]
    assert found([(2, True), (3, True), (2, True), (3, False)]) == [[False, 0], [False, 0], [False, 1], [True, 1]]


LAZY = """
import sys, torch, srmsnorm
names = ("srmsnorm.choosing", "srmsnorm.undecided", "srmsnorm.replacing", "torch._inductor.pattern_matcher")
assert not set(names) & set(sys.modules)
asked = lambda: [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("srmsnorm_")]
assert not asked()
srmsnorm.inline_under_compile("auto")
assert asked() and not set(names[2:]) & set(sys.modules)
"""

MOVED = """
import warnings, torch, torch.fx.experimental.proxy_tensor as proxy_tensor
import srmsnorm
moved = proxy_tensor.get_proxy_slot
del proxy_tensor.get_proxy_slot
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        srmsnorm.inline_under_compile("auto")
proxy_tensor.get_proxy_slot = moved
assert ["keeps the operator" in str(warning.message) for warning in caught] == [True], caught
seen = []
backend = lambda graph, inputs: seen.extend(str(node.target) for node in graph.graph.nodes) or graph.forward
torch.compile(srmsnorm.srms_norm, fullgraph=True, backend=backend)(torch.ones(2, 8))
assert "srmsnorm.srms_norm.default" in seen, seen
"""


@pytest.mark.parametrize("program", [LAZY, MOVED], ids=["lazy", "moved"])
def test_fresh_process(program):
    done = fresh.run(program)
    assert done.returncode == 0, done.stderr
