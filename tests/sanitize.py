"""Fuzzes the CPU part as a sanitizer sees it: `make sanitize`, or `make sanitize ARGS="address --n 300"`.

address is AddressSanitizer with UndefinedBehaviorSanitizer, thread is ThreadSanitizer. Each has a build of its own in
build/; the libraries in srmsnorm/ stay as they are. First, calls that are wrong on purpose must be reported
(planted_faults.cpp); then the fuzzer runs on each instruction set.

What is seen: all of csrc that is built for the CPU. PyTorch and Python are not instrumented. GCC's OpenMP runtime does
not tell ThreadSanitizer when threads meet, so LLVM's takes its place, with its tool that does (libarcher). Unseen stays
what only PyTorch's code touches or orders, and the reads and writes of its operators on our operands and results.
"""

import argparse
import glob
import os
import pathlib
import subprocess
import sys
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What each sanitizer must say of a planted fault; nothing of a call that is right.
PLANTED = {
    "address": {"none": "", "overflow": "heap-buffer-overflow", "undefined": "store to misaligned address"},
    "thread": {"none": "", "race": "data race", "callers": "data race"},
}
FUZZED = {
    "address": ["--n", "3000"],
    "thread": ["--n", "600", "--large", "0.5", "--concurrent", "2"],
}


def of_gcc(name: str) -> str:
    return found(name, pathlib.Path(ask("g++", f"-print-file-name={name}")))


def of_llvm(name: str) -> str:
    return found(name, pathlib.Path(ask("clang", "-print-resource-dir")).parents[1] / name)


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def found(name: str, path: pathlib.Path) -> str:
    if not path.is_absolute() or not path.exists():
        raise SystemExit(f"tests/sanitize.py needs {name}: of GCC's sanitizers, or of LLVM's OpenMP (libomp-dev)")
    return str(path.resolve())


def environment(sanitizer: str) -> dict[str, str]:
    options = {"halt_on_error": 1, "exitcode": 99}
    if sanitizer == "address":
        preloaded = [of_gcc("libasan.so"), of_gcc("libubsan.so"), of_gcc("libstdc++.so")]
        variables = {"ASAN_OPTIONS": options | {"detect_leaks": 0}, "UBSAN_OPTIONS": {"print_stacktrace": 1}}
    else:
        preloaded = [of_gcc("libtsan.so"), of_llvm("libomp.so"), of_gcc("libstdc++.so")]
        variables = {"TSAN_OPTIONS": options | {"ignore_noninstrumented_modules": 1}}
    joined = {name: ":".join(f"{key}={value}" for key, value in given.items()) for name, given in variables.items()}
    if sanitizer == "thread":
        joined["OMP_TOOL_LIBRARIES"] = of_llvm("libarcher.so")
    return {"LD_PRELOAD": ":".join(preloaded), "PYTHONPATH": str(folder(sanitizer) / "lib"), **joined}


def folder(sanitizer: str) -> pathlib.Path:
    return ROOT / f"build/sanitize-{sanitizer}-torch-{torch.__version__}"


def build(sanitizer: str) -> None:
    folder(sanitizer).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "setup.py", "egg_info", "--egg-base", folder(sanitizer)]
    command += ["build", "--build-base", folder(sanitizer)]
    command += ["--build-lib", folder(sanitizer) / "lib"]
    subprocess.run(
        command, cwd=ROOT, env={**os.environ, "SRMSNORM_CUDA": "0", "SRMSNORM_SANITIZE": sanitizer}, check=True
    )


def check_that_it_bites(sanitizer: str) -> None:
    program, libraries = folder(sanitizer) / "planted_faults", pathlib.Path(torch.__path__[0], "lib")
    include = pathlib.Path(torch.__path__[0], "include")
    also = ["-fsanitize=address,undefined"] if sanitizer == "address" else ["-fsanitize=thread"]
    objects = glob.glob(f"{folder(sanitizer)}/temp*/csrc/cpu/*.o")
    objects = [name for name in objects if not name.endswith("srms_norm.o")]
    command = ["g++", "-std=c++20", "-g1", "-O1", "-fopenmp", *also, f"-I{include}", ROOT / "tests/planted_faults.cpp"]
    command += [*objects, f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch_cpu", "-lc10", "-o", program]
    subprocess.run(command, check=True)
    for fault, word in PLANTED[sanitizer].items():
        given = {**os.environ, **environment(sanitizer)}
        done = subprocess.run([*here(), program, fault], capture_output=True, text=True, env=given)
        said = done.stdout + done.stderr
        if (done.returncode == 0) != (not word) or word not in said:
            raise SystemExit(f"{sanitizer}: planted fault {fault!r}: exit code {done.returncode}\n{said}")
        print(f"{sanitizer}: planted fault {fault!r}: {word or 'nothing said'}", flush=True)


def here() -> list[str]:
    """At fixed addresses, since ThreadSanitizer's map of memory has no room for much randomness."""
    return ["setarch", "-R"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sanitizers", nargs="*", default=list(PLANTED))
    given, fuzzed = parser.parse_known_args()
    failed = False
    for sanitizer in given.sanitizers:
        began = time.monotonic()
        build(sanitizer)
        built = time.monotonic()
        check_that_it_bites(sanitizer)
        command = [*here(), sys.executable, ROOT / "tests/fuzz.py", "--compiled", "0", *FUZZED[sanitizer], *fuzzed]
        done = subprocess.run([*map(str, command)], env={**os.environ, **environment(sanitizer)})
        failed |= done.returncode != 0
        print(f"{sanitizer}: built in {built - began:.0f} s, run in {time.monotonic() - built:.0f} s", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
