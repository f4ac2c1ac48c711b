"""One wheel for a platform: make wheel [ARGS="2.11 2.15"]

The kernels, which know no torch, are in it once, with the CUDA runtime linked in; the operators for each minor version
of torch, and their Python face, which the stable ABI makes one for every Python. srmsnorm/_library.py chooses as it is
imported. Arguments: the minor versions of torch, or folders where one is installed; without any, all that there are.

TORCH_CUDA_ARCH_LIST names other GPU architectures than the default ones; CUDA_HOME a toolkit instead of the oldest one
that the package index has. The same sources give the same wheel: its time is SOURCE_DATE_EPOCH, or the last commit's.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from building import (
    DEFAULT_ARCHITECTURES,
    OLDEST_TOOLKIT,
    ROOT,
    compile_flags,
    debug,
    find,
    named_architectures,
    sources,
    toolkit_version,
    version,
)

# The first release of each minor version: what is in it is in the later ones.
TORCHES = {"2.11": "2.11.0", "2.12": "2.12.0", "2.13": "2.13.0", "2.14": "2.14.0", "2.15": "2.15.0"}
# The oldest nvcc of the package index: what it makes takes a driver from 580 on, what a CUDA_HOME of 12.8 makes 525.
NVCC = "13.0"
NVCC_WHEELS = [f"nvidia-{name}=={NVCC}.*" for name in ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")]
# Of torch, what a build of the operators takes.
PARTS = ["torch/include/*", *(f"torch/lib/lib{name}.so" for name in ("torch", "torch_cpu", "torch_python", "c10"))]
BUILD = Path("build/wheel")
TREE = BUILD / "tree"
# Of this version by its name, as a process finds a library that is loaded already by that.
KERNELS = f"libsrmsnorm_kernels_{version().replace('.', '_')}.so"
# Of the kernels' library only these are seen: none of the runtime's, of which torch has a copy of its own.
EXPORTS = "{ global: _ZN8srmsnorm4cuda*; _ZN8srmsnorm3cpu*; local: *; };\n"


def main() -> None:
    os.chdir(ROOT)
    os.environ.setdefault("SOURCE_DATE_EPOCH", last_commit())
    home, architectures = toolkit(), named_architectures() or ";".join(DEFAULT_ARCHITECTURES) + "+PTX"
    torches = dict(torch_of(argument) for argument in sys.argv[1:] or TORCHES)
    shutil.rmtree(TREE, ignore_errors=True)
    compile_all(home, architectures, torches)
    note = {"cuda": ".".join(map(str, toolkit_version(home))), "architectures": architectures}
    pack({"torch": list(torches), **note, "debug": debug(), "sources": sources()})


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)


def last_commit() -> str:
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], capture_output=True, text=True)
    return done.stdout.strip() or "315532800"  # 1980, the first year of a zip archive


# ---- what it is built with


def toolkit() -> Path:
    if given := os.environ.get("CUDA_HOME"):
        home = Path(given)
    else:
        run(sys.executable, "-m", "pip", "install", "--quiet", *NVCC_WHEELS)
        home = Path(sysconfig.get_path("purelib"), "nvidia/cu13")
    if toolkit_version(home) < OLDEST_TOOLKIT:
        raise SystemExit(f"srmsnorm: a CUDA toolkit from {'.'.join(map(str, OLDEST_TOOLKIT))} on is needed, not {home}")
    return home


def torch_of(argument: str) -> tuple[str, Path]:
    """A minor version and the folder of its torch, of which only headers and libraries are used."""
    folder = Path(argument) if "/" in argument else download(argument)
    version = (folder / "include/torch/headeronly/version.h").read_text()
    minor = ".".join(re.findall(r"TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", version)[:2])
    return minor, folder


def download(minor: str) -> Path:
    if minor not in TORCHES:
        raise SystemExit(f"srmsnorm: a wheel can be built for torch {', '.join(TORCHES)}, not {minor}")
    folder = BUILD / f"torch-{TORCHES[minor]}"
    if not folder.exists():
        wheels = BUILD / "download"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        run(*pip, "--dest", wheels, f"torch=={TORCHES[minor]}")
        run("unzip", "-q", "-o", next(wheels.glob("torch-*.whl")), *PARTS, "-d", folder)
        shutil.rmtree(wheels)
    return folder / "torch"


# ---- the libraries


class Ninja:
    """A build file: each object and library by its command."""

    def __init__(self) -> None:
        self.text = f"builddir = {BUILD}\n"  # of what ninja remembers
        self.text += "rule run\n  command = $command\n  description = $out\n  depfile = $out.d\n  deps = gcc\n"
        self.text += "rule link\n  command = $command\n  description = $out\n"

    def object(self, source: str, folder: str, command: list[str]) -> str:
        out = f"{BUILD}/{folder}/{source}.o"
        line = " ".join([*command, "-MD", "-MF", f"{out}.d", "-c", source, "-o", out])
        self.text += f"build {out}: run {source}\n  command = {line}\n"
        return out

    def library(self, out: str, objects: list[str], libraries: list[str], after: str = "") -> None:
        line = " ".join([compiler(), "-shared", "-s", "-o", out, *objects, *libraries])
        self.text += f"build {out}: link {' '.join(objects)} | {after}\n  command = {line}\n"

    def run(self) -> None:
        (BUILD / "build.ninja").write_text(self.text)
        jobs = [f"-j{os.environ['MAX_JOBS']}"] if os.environ.get("MAX_JOBS") else []
        run("ninja", "-f", BUILD / "build.ninja", *jobs)


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def compile_all(home: Path, architectures: str, torches: dict[str, Path]) -> None:
    ninja = Ninja()
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = compile_flags()
    cxx = [compiler(), "-fPIC", *(flag.replace(f"{ROOT}/", "") for flag in flags["cxx"])]
    nvcc = [f"{home}/bin/nvcc", "-Xcompiler", "-fPIC", *flags["nvcc"], *code_for(architectures)]
    add_kernels(ninja, cxx, nvcc, home)
    for minor, torch in torches.items():
        include = [f"{torch}/include", f"{torch}/include/torch/csrc/api/include", f"{home}/include"]
        with_torch = [*cxx, f"-ffile-prefix-map={torch}=torch", *(f"-isystem {path}" for path in include)]
        add_operators(ninja, f"torch{minor.replace('.', '_')}", with_torch, torch)
    ninja.run()


def add_kernels(ninja: Ninja, cxx: list[str], nvcc: list[str], home: Path) -> None:
    (BUILD / "exports").write_text(EXPORTS)
    instruction_sets = [path for path in find("cpu/*.cpp") if path != "csrc/cpu/srms_norm.cpp"]
    objects = [ninja.object(path, "kernels", cxx) for path in instruction_sets]
    objects += [ninja.object(path, "kernels", nvcc) for path in find("cuda/*.cu")]
    found = [home / folder / "libcudart_static.a" for folder in ("lib64", "lib")]
    runtime = str(next(path for path in found if path.exists()))
    seen = [f"-Wl,--version-script={BUILD}/exports", f"-Wl,-soname,{KERNELS}"]
    ninja.library(f"{TREE}/srmsnorm/{KERNELS}", objects, [runtime, "-ldl", "-lrt", "-lpthread", *seen])


def add_operators(ninja: Ninja, folder: str, cxx: list[str], torch: Path) -> None:
    package = f"{TREE}/srmsnorm"
    of_torch = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
    glue = [path for path in find("*.cpp") if path != "csrc/bindings.cpp"]
    glue += ["csrc/cpu/srms_norm.cpp", *find("cuda/*.cpp")]
    objects = [ninja.object(path, folder, [*cxx, "-DSRMSNORM_CUDA"]) for path in glue]
    kernels = [f"-L{package}", f"-l:{KERNELS}", "-Wl,-rpath,'$$ORIGIN/..'", "-fopenmp"]
    ninja.library(f"{package}/{folder}/_ops.abi3.so", objects, [*kernels, *of_torch], f"{package}/{KERNELS}")
    python = ["-DPy_LIMITED_API=0x030A0000", "-isystem", sysconfig.get_path("include")]
    objects = [ninja.object("csrc/bindings.cpp", folder, [*cxx, *python])]
    ninja.library(f"{package}/{folder}/_C.abi3.so", objects, [*of_torch, "-ltorch_python"])


def code_for(architectures: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST in nvcc's words."""
    flags = []
    for name in architectures.split(";"):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode arch=compute_{number},code=compute_{number}")
    return flags


# ---- the wheel


def pack(note: dict[str, object]) -> None:
    """Metadata as setuptools makes them of pyproject.toml; the platform's name is what auditwheel finds."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(name, TREE)
    for path in Path("srmsnorm").rglob("*"):
        if path.suffix in (".py", ".typed", ".cmake"):
            (TREE / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, TREE / path)
    (TREE / "srmsnorm/built_for.json").write_text(json.dumps(note) + "\n")
    metadata = "import setuptools; setuptools.setup(script_args=['dist_info'])"
    subprocess.run([sys.executable, "-c", metadata], cwd=TREE, check=True, stdout=subprocess.DEVNULL)
    for path in [*TREE.glob("*.egg-info"), TREE / "build"]:
        shutil.rmtree(path, ignore_errors=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (TREE / name).unlink()
    (about,) = TREE.glob("*.dist-info")
    platform = sysconfig.get_platform().replace("-", "_")
    (about / "WHEEL").write_text(
        f"Wheel-Version: 1.0\nGenerator: srmsnorm\nRoot-Is-Purelib: false\nTag: cp310-abi3-{platform}\n\n"
    )
    shutil.rmtree(BUILD / "dist", ignore_errors=True)
    (BUILD / "dist").mkdir()
    run(sys.executable, "-m", "wheel", "pack", TREE, "--dest-dir", BUILD / "dist")
    (plain,) = (BUILD / "dist").glob("*.whl")
    torch_has = ["libtorch.so", "libtorch_cpu.so", "libtorch_python.so", "libc10.so", "libgomp.so.1"]
    excluded = [word for name in torch_has for word in ("--exclude", name)]
    run(sys.executable, "-m", "auditwheel", "repair", *excluded, "--wheel-dir", "dist", plain)


if __name__ == "__main__":
    main()
