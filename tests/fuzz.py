"""Draws calls and checks them, on each instruction set of this CPU or on a GPU.

make fuzz N=100000                 python tests/fuzz.py --n 100000: a fresh seed, which it prints
make fuzz SEED=7 INDEX=123 N=1     the one call that a failure names
make fuzz SECONDS=60               as many calls as a minute takes
python tests/fuzz.py --device cuda on a GPU, where srmsnorm is built already
"""

import argparse
import json
import mmap
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import fuzz_calls
import fuzz_checks
import fuzz_memory
import fuzz_results
import torch

CAPABILITIES = {"DEFAULT": ["default"], "NO AVX": ["default"], "AVX2": ["default", "avx2"]}
HERE = pathlib.Path(__file__)


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=None, help="calls in all; 30000")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--index", type=int, default=0, help="the first call's")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes, rounded up to whole sets")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--isa", action="append", default=[], help="default, avx2 or avx512; all that there are")
    parser.add_argument("--operator", action="append", default=[], help="only these")
    parser.add_argument("--compiled", type=float, default=1 / 4000, help="the share of compiled calls")
    parser.add_argument("--large", type=float, default=0.01, help="the share of calls large enough for several threads")
    parser.add_argument("--concurrent", type=int, default=1, help="Python threads of a process that call at once")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the file that holds the index at hand
    parser.add_argument("--stride", type=int, default=1, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.n = given.n or (30_000 if given.seconds == float("inf") else 1 << 31)
    given.seed = random.SystemRandom().randrange(1 << 31) if given.seed is None else given.seed
    return given


# ---- a worker: one process, one instruction set


class Tally:
    """By operator and mode: calls, refusals, the worst error in units of its bound; and what failed."""

    def __init__(self):
        self.calls, self.refused, self.worst, self.failures = Counter(), Counter(), {}, []
        self.spent = 0.0  # seconds of a processor

    def run(self, call: fuzz_calls.Call, pool: fuzz_memory.Pool) -> None:
        key = f"{call.operator}/{call.mode}"
        self.calls[key] += 1
        try:
            worst = max(fuzz_checks.check(call, pool).values(), default=0.0)
            self.worst[key] = max(self.worst.get(key, 0.0), worst)
        except fuzz_results.Refused:
            self.refused[key] += 1
        except fuzz_results.Failure as error:
            self.failures.append((call.index, key, str(error)))
        except Exception:
            self.failures.append((call.index, key, traceback.format_exc(limit=-3)))


def work(given: argparse.Namespace) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)  # what the operators allocate is NaN
    torch._C._functorch._set_vmap_fallback_enabled(False)
    tally, pool = Tally(), fuzz_memory.Pool(given.device)
    began, until = time.process_time(), time.monotonic() + given.seconds

    def some(first: int, step: int) -> None:
        torch.set_num_threads(1)  # of this thread's calls; a large one draws its own number
        for index in range(first, given.index + given.n, step):
            at_hand[:] = index.to_bytes(8, "little")
            call = draw(given, index)
            if not given.operator or call.operator in given.operator:
                tally.run(call, pool)
            if len(tally.failures) >= 200 or time.monotonic() > until:
                break

    with open(given.worker, "r+b") as file, mmap.mmap(file.fileno(), 8) as at_hand:
        each = range(given.concurrent)
        with ThreadPoolExecutor(given.concurrent) as threads:
            for done in [
                threads.submit(some, given.index + i * given.stride, given.concurrent * given.stride) for i in each
            ]:
                done.result()
    tally.spent = time.process_time() - began
    print(json.dumps(vars(tally)))


def draw(given: argparse.Namespace, index: int) -> fuzz_calls.Call:
    return fuzz_calls.draw(given.seed, index, large=given.large, compiled=given.compiled)


# ---- all of them


def start(given: argparse.Namespace, isa: str, first: int, stride: int) -> list[dict]:
    """A worker's tally; one more of each worker that died, which goes on behind the call that killed it."""
    tallies, end, until = [], given.index + given.n, time.monotonic() + given.seconds
    with tempfile.NamedTemporaryFile() as at_hand:
        at_hand.write(bytes(8))
        at_hand.flush()
        while first < end and len(tallies) < 10:
            command = [sys.executable, HERE, "--worker", at_hand.name, "--stride", stride, "--index", first]
            command += ["--n", end - first, "--seed", given.seed, "--device", given.device]
            command += ["--seconds", max(0.0, until - time.monotonic()), "--compiled", given.compiled]
            command += ["--large", given.large, "--concurrent", given.concurrent]
            command += [part for name in given.operator for part in ("--operator", name)]
            environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONWARNINGS": "ignore"}
            if isa != given.device:
                environment["ATEN_CPU_CAPABILITY"] = isa
            done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
            if done.returncode == 0:
                return [*tallies, json.loads(done.stdout.splitlines()[-1])]
            index = int.from_bytes(pathlib.Path(at_hand.name).read_bytes(), "little")
            message = f"the process ended with {done.returncode}\n{done.stderr[-4000:]}"
            tallies.append(vars(Tally()) | {"failures": [(index, "process", message)]})
            first = index + stride
    return tallies


def sets(given: argparse.Namespace) -> list[str]:
    if given.device != "cpu":
        return [given.device]
    return given.isa or CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), ["default", "avx2", "avx512"])


def main() -> None:
    given = options()
    if given.worker:
        return work(given)
    isas = sets(given)
    each = 1 if given.device != "cpu" else min(-(-given.jobs // len(isas)), -(-given.n // len(isas)))
    stride = len(isas) * each
    print(f"seed {given.seed}, from call {given.index} on: {', '.join(isas)}", flush=True)
    began = time.monotonic()
    with ThreadPoolExecutor(stride) as threads:
        runs = [
            (isas[i % len(isas)], threads.submit(start, given, isas[i % len(isas)], given.index + i, stride))
            for i in range(stride)
        ]
        tallies = [(isa, tally) for isa, run in runs for tally in run.result()]
    calls = sum(sum(tally["calls"].values()) for _, tally in tallies)
    spent = sum(tally["spent"] for _, tally in tallies)
    print_table(tallies)
    print(
        f"seed {given.seed}: {calls} calls in {time.monotonic() - began:.0f} s, "
        f"{calls / max(spent, 1e-9):.0f} a second of each processor"
    )
    failures = [(isa, *failure) for isa, tally in tallies for failure in tally["failures"]]
    report(given, failures)
    sys.exit(bool(failures) or not calls)


def print_table(tallies: list[tuple[str, dict]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("operator", "set", "calls", "refused", "worst error / bound", "where")
    keys = sorted({(key.split("/")[0], isa) for isa, tally in tallies for key in tally["calls"]})
    for operator, isa in keys:
        mine = [tally for name, tally in tallies if name == isa]

        def total(what, mine=mine, operator=operator):
            return sum(n for tally in mine for key, n in tally[what].items() if key.split("/")[0] == operator)

        worst = max(
            ((w, key) for tally in mine for key, w in tally["worst"].items() if key.split("/")[0] == operator),
            default=(0.0, "/"),
        )
        row = total("calls"), total("refused"), f"{worst[0]:.3f}", worst[1].split("/")[1]
        table.add_row(operator, isa, *map(str, row))
    Console(width=120).print(table)


def report(given: argparse.Namespace, failures: list) -> None:
    """One failure of each kind in full, with what repeats it."""
    kinds = {}
    for isa, index, key, message in failures:
        kind = (key, "".join(c for c in message.splitlines()[-1] if not c.isdigit())[:60])
        kinds.setdefault(kind, []).append((isa, index, message))
    for (key, _), found in kinds.items():
        isa, index, message = min(found, key=lambda f: f[1])
        where = f"ISA={isa}" if given.device == "cpu" else f"DEVICE={given.device}"
        again = f"make fuzz SEED={given.seed} INDEX={index} N=1 {where}"
        call = draw(given, index)
        print(f"\nFAILED {len(found)} x {key}: {message}\n  again: {again}\n{fuzz_calls.program(call)}")
    if failures:
        print(f"\n{len(failures)} failures of {len(kinds)} kinds")


if __name__ == "__main__":
    main()
