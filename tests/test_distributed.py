"""DTensor: where norms run, what they communicate, in place, and in parallel models; on two and four gloo processes."""

import json
import os
import pathlib

import fresh
import pytest
import torch
from filelock import FileLock

if not torch.distributed.is_available():
    pytest.skip("torch without torch.distributed", allow_module_level=True)

import distributed_checks

WORLDS = (2, 4)


@pytest.fixture(scope="session")
def report(tmp_path_factory):
    """Outcomes by world and check, and the log. The worlds run once a session, whatever the number of its workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    path = folder / "distributed.json"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_text(json.dumps(run_worlds()))
    return json.loads(path.read_text())


def run_worlds():
    """One launcher imports torch once for all. It ends each world after LIMIT; should it hang itself, it is ended."""
    program = f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
    program += "import distributed_checks as d, json\n"
    program += f"print(json.dumps({{world: d.run_world(world) for world in {WORLDS}}}))"
    limit = len(WORLDS) * distributed_checks.LIMIT + 60
    result = fresh.run(program, timeout=limit, OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    assert result.returncode == 0, result.stderr[-3000:]
    return {"worlds": json.loads(result.stdout.splitlines()[-1]), "log": result.stderr[-3000:]}


@pytest.mark.parametrize(
    ("world", "name"), [(world, name) for world in WORLDS for name in distributed_checks.checks(world)]
)
def test_distributed(world, name, report):
    reached = report["worlds"][str(world)]
    assert name in reached, f"not reached; the processes' output ends with\n{report['log']}"
    assert not reached[name], reached[name]


def test_rules_cost_nothing_before_their_import():
    program = "import sys, srmsnorm; print('torch.distributed.tensor' in sys.modules)"
    assert fresh.run(program).stdout.strip() == "False"
