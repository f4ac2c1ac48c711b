"""Whether a candidate has a feature: its check is run, in this process or in one of its own."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress

import torch

from .candidates import CANDIDATES
from .catalogue import FEATURES
from .feature import need

ROOT = pathlib.Path(__file__).resolve().parents[3]
TIMEOUT_S = 120  # of a program in a process of its own


def outcome(name: str, candidate: str, device: str) -> str:
    """ "ok", or why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            (examine_alone if FEATURES[name].alone else examine)(name, candidate, device)
        except Exception as error:
            return why(error)
    return "ok"


def examine(name: str, candidate: str, device: str) -> None:
    torch.compiler.reset()
    FEATURES[name].check(CANDIDATES[candidate](), device)


def examine_alone(name: str, candidate: str, device: str) -> None:
    """The same, in a process of its own."""
    run_alone(
        f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        "from benchmarks.suites.features import running\n"
        "del sys.path[0]\n"  # srmsnorm is found where this process finds it
        f"try: running.examine({name!r}, {candidate!r}, {device!r})\n"
        "except Exception as error: print(running.why(error)); sys.exit(1)"
    )


def run_alone(program: str, timeout: float = TIMEOUT_S) -> None:
    """Raises what its last line says where it fails. Its Inductor has a cache of its own: where a program ends amid
    writing, its locks stay behind, and the next one would wait for them. Its output goes to a file, and its whole group
    is ended: compilers' workers outlive a program that crashes, and would hold a pipe open."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache, tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=output, stderr=subprocess.DEVNULL,
            env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {timeout} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        last = (output.read().strip().splitlines() or [f"ended with {code}"])[-1]
    need(code == 0, last)


def why(error: Exception) -> str:
    """One line."""
    line = (str(error).strip().splitlines() or ["wrong"])[0]
    return line if isinstance(error, AssertionError) else f"{type(error).__name__}: {line}"
