"""DTensor: where norms run, what they communicate, in place, and in parallel models; on two and four gloo processes."""

import functools
import json
import pathlib

import fresh
import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("torch without torch.distributed", allow_module_level=True)

import distributed_checks

WORLDS = (2, 4)


@functools.cache
def outcomes():
    """(outcomes by world and check, log): one launcher imports torch once, each world's processes start once."""
    program = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
    program += "import distributed_checks as d, json\n"
    program += f"print(json.dumps({{world: d.run_world(world) for world in {WORLDS}}}))"
    result = fresh.run(program, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1]), result.stderr


@pytest.mark.parametrize(
    ("world", "name"), [(world, name) for world in WORLDS for name in distributed_checks.names(world)]
)
def test_distributed(world, name):
    by_world, log = outcomes()
    reached = by_world[str(world)]
    assert name in reached, f"not reached; the processes' output ends with\n{log[-3000:]}"
    assert not reached[name], reached[name]


def test_rules_cost_nothing_before_their_import():
    program = "import sys, srmsnorm; print('torch.distributed.tensor' in sys.modules)"
    assert fresh.run(program).stdout.strip() == "False"
