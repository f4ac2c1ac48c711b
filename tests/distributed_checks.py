"""What test_distributed reports: named checks that all processes of a gloo group run together, on the CPU.

One launcher imports torch once and forks the processes of each world, each of which runs every check of that world; so
a world costs seconds, not minutes. ``python distributed_checks.py 2 outcomes.json`` runs one by hand.
"""

import datetime
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import traceback

import distributed_backward
import distributed_converted
import distributed_forward
import distributed_gated
import distributed_in_place
import distributed_parallel
import distributed_quantized
import distributed_split
import torch
import torch.distributed as dist

# In this order: the first checks of forward want a process in which nothing has run.
SUBJECTS = (
    distributed_forward,
    distributed_backward,
    distributed_converted,
    distributed_split,
    distributed_gated,
    distributed_in_place,
    distributed_parallel,
    distributed_quantized,
)
LIMIT = 120  # seconds for all checks of a world; they take about ten


def checks(world):
    """By name, in order."""
    found = {}
    for subject in SUBJECTS:
        own = {name: value for name, value in vars(subject).items() if world in getattr(value, "worlds", ())}
        assert not found.keys() & own.keys(), "two checks of one name"
        found |= own
    return found


def run_checks(rank, world, folder):
    torch.set_num_threads(1)
    store, seconds = f"file://{folder}/store", datetime.timedelta(seconds=1)
    dist.init_process_group("gloo", store, rank=rank, world_size=world, timeout=20 * seconds)
    # Of its own, and patient: a process whose check has failed waits here for those that wait for it there.
    reports = dist.new_group(timeout=100 * seconds)
    outcomes = {}
    for name, check in checks(world).items():
        try:
            check()
            error = None
        except BaseException:
            error = traceback.format_exc()
        errors = [None] * world
        dist.all_gather_object(errors, error, group=reports)
        outcomes[name] = "\n".join(f"process {i} of {world}: {e}" for i, e in enumerate(errors) if e)
        if rank == 0:
            pathlib.Path(folder, "outcomes.json").write_text(json.dumps(outcomes))
    dist.barrier(group=reports)
    os._exit(0)  # gloo's threads may abort the process while the interpreter shuts down


def run_world(world):
    """{name of a check: what went wrong, empty if nothing}; a check that is missing was not reached."""
    fork = multiprocessing.get_context("fork")  # torch is imported once, in the launcher
    with tempfile.TemporaryDirectory() as folder:
        processes = [fork.Process(target=run_checks, args=(rank, world, folder)) for rank in range(world)]
        for process in processes:
            process.start()
        processes[0].join(LIMIT)
        for process in processes:
            process.kill()
            process.join()
        outcomes = pathlib.Path(folder, "outcomes.json")
        return json.loads(outcomes.read_text()) if outcomes.exists() else {}


if __name__ == "__main__":
    pathlib.Path(sys.argv[2]).write_text(json.dumps(run_world(int(sys.argv[1])), indent=2))
