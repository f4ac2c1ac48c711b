"""Builds the two libraries: srmsnorm/_ops, the operators (links no Python), and srmsnorm/_C, their Python face.

Settings, which README.md explains: SRMSNORM_CUDA=auto|native|0|1, TORCH_CUDA_ARCH_LIST, CUDA_HOME, MAX_JOBS, DEBUG=1.
SRMSNORM_SANITIZE=address|thread builds for tests/sanitize.py.
`python setup.py --nvcc-wheels` prints the requirements that bring an nvcc from the package index where there is none.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from build_backend import fail  # first: it says what of the following is missing

# isort: split
import torch
from setuptools import setup

from building import (
    DEFAULT_ARCHITECTURES,
    OLDEST_TOOLKIT,
    ROOT,
    ask_nvcc,
    compile_flags,
    debug,
    find,
    named_architectures,
    sanitizer_flags,
    sources,
    toolkit_version,
)


def main() -> None:
    if sys.argv[1:] == ["--nvcc-wheels"]:
        print(*missing_nvcc_wheels())
        return
    home = cuda_home()
    about = facts(home)
    print("srmsnorm:", f"CUDA at {home} for {about['architectures']}" if home else "without CUDA")
    setup(ext_modules=extensions(home, about), cmdclass={"build_ext": build_command(about)})


# Which compiler


def check_compiler() -> None:
    from torch.utils.cpp_extension import get_cxx_compiler

    command = [*shlex.split(get_cxx_compiler()), "-std=c++20"]
    program = "#include <concepts>\n#include <span>\nstatic_assert(__cplusplus > 201703L);\n"
    try:
        done = subprocess.run(
            [*command, "-fsyntax-only", "-x", "c++", "-"], input=program, capture_output=True, text=True
        )
        wrong = done.stderr.strip().partition("\n")[0] if done.returncode else ""
    except OSError as error:
        wrong = str(error)
    if wrong:
        fail(f"a C++20 compiler is needed, but `{shlex.join(command)}` says: {wrong}. Install one, or name one in CXX")


# Which CUDA toolkit


def cuda_setting() -> str:
    """auto, 0 or 1. native is what this machine can run, or has been named: 0 without a GPU, 1 with an architecture."""
    setting = os.environ.get("SRMSNORM_CUDA") or "auto"
    if setting not in ("auto", "native", "0", "1"):
        fail(f"SRMSNORM_CUDA must be auto, native, 0 or 1, got {setting!r}")
    if setting == "native":
        return "1" if named_architectures() else "auto" if torch.cuda.is_available() else "0"
    return setting


def cuda_home() -> Path | None:
    """The toolkit to build the CUDA part with; None for a build without it."""
    setting = cuda_setting()
    if setting == "0":
        return None
    if torch.version.cuda is None:
        if setting == "1":
            fail(f"SRMSNORM_CUDA=1, but torch {torch.__version__} has no CUDA support; install a CUDA build of torch")
        return None
    home = find_toolkit()
    if home is None and (setting == "1" or torch.cuda.is_available()):
        why = "SRMSNORM_CUDA=1" if setting == "1" else "a GPU is visible"
        fail(
            f"{why}, but no nvcc suits torch {torch.__version__}; install a CUDA {torch.version.cuda} toolkit (and set "
            f"CUDA_HOME where it is in an unusual place), or `pip install {' '.join(nvcc_wheels())}` and build with "
            "--no-build-isolation, or set SRMSNORM_CUDA=0 for a build without CUDA"
        )
    return home


def find_toolkit() -> Path | None:
    """CUDA_HOME, nvcc on the PATH, the usual place, nvcc wheels: the first whose version goes with torch's."""
    nvcc = shutil.which("nvcc")
    wheels = importlib.util.find_spec("nvidia")
    candidates = [
        os.environ.get("CUDA_HOME"),
        os.environ.get("CUDA_PATH"),
        nvcc and Path(nvcc).resolve().parents[1],
        "/usr/local/cuda",
        *(Path(folder, f"cu{torch_cuda()[0]}") for folder in (wheels and wheels.submodule_search_locations) or []),
    ]
    return next((Path(home) for home in candidates if home and suits(Path(home))), None)


def suits(home: Path) -> bool:
    complete = (home / "bin/nvcc").exists() and (home / "include/cuda_runtime.h").exists()
    return complete and toolkit_version(home) >= OLDEST_TOOLKIT and toolkit_version(home)[0] == torch_cuda()[0]


def torch_cuda() -> tuple[int, ...]:
    return tuple(map(int, torch.version.cuda.split(".")))


def nvcc_wheels() -> list[str]:
    release = ".".join(map(str, torch_cuda()))
    compiler = [f"{name}=={release}.*" for name in ("nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt")]
    return [*compiler, f"nvidia-cuda-cccl=={torch_cuda()[0]}.*"]


def missing_nvcc_wheels() -> list[str]:
    """Empty where there is a toolkit, or no use for one: nobody asks for the CUDA part and no GPU is visible."""
    setting = cuda_setting()
    wanted = setting == "1" or (setting == "auto" and torch.cuda.is_available())
    return nvcc_wheels() if wanted and torch.version.cuda and find_toolkit() is None else []


def architectures(home: Path) -> str:
    """TORCH_CUDA_ARCH_LIST; unset: the visible GPUs', else the default ones, as far as nvcc knows them."""
    if given := named_architectures():
        return given
    known = {(int(n[:-1]), int(n[-1])) for n in re.findall(r"compute_(\d+)\b", ask_nvcc(home, "--list-gpu-arch"))}
    visible = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if visible and visible <= known:
        return ";".join(f"{major}.{minor}" for major, minor in sorted(visible))
    default = [name for name in DEFAULT_ARCHITECTURES if tuple(map(int, name.split("."))) in known]
    return ";".join(default) + "+PTX"


# What is built


def facts(home: Path | None) -> dict[str, str]:
    about = {"torch": torch.__version__, "cuda": "", "architectures": ""}
    if home:
        about |= {"cuda": ".".join(map(str, toolkit_version(home))), "architectures": architectures(home)}
    return about


def extensions(home: Path | None, about: dict[str, str]) -> list:
    """One build of either serves every Python: _ops knows none, _C its stable ABI."""
    if home:
        os.environ["CUDA_HOME"] = str(home)  # torch.utils.cpp_extension reads both
        os.environ["TORCH_CUDA_ARCH_LIST"] = about["architectures"]

    from torch.utils.cpp_extension import CppExtension

    macros = [("SRMSNORM_CUDA", "1")] if home else []
    cuda = cuda_libraries() if home else {}
    ops = CppExtension(
        "srmsnorm._ops",
        [path for path in find("*.cpp") + find("cpu/*.cpp") if path != "csrc/bindings.cpp"]
        + (find("cuda/*.cpp") + find("cuda/*.cu") if home else []),
        py_limited_api=True,  # which also keeps torch_python out of the link
        define_macros=macros,
        extra_compile_args=compile_flags(),
        extra_link_args=["-fopenmp", *sanitizer_flags(), *cuda.pop("link_args", [])],
        **cuda,
    )
    face = CppExtension(
        "srmsnorm._C",
        ["csrc/bindings.cpp"],
        libraries=["torch_python"],
        py_limited_api=True,
        extra_compile_args=compile_flags(),
        extra_link_args=sanitizer_flags(),
    )
    return [ops, face]


def cuda_libraries() -> dict[str, list[str]]:
    from torch.utils.cpp_extension import include_paths, library_paths

    return {
        "include_dirs": include_paths("cuda", torch_include_dirs=False),
        "library_dirs": library_paths("cuda", torch_include_dirs=False),
        "link_args": [f"-l:libcudart.so.{torch_cuda()[0]}"],  # by its full name: the wheels have no libcudart.so
    }


def build_command(about: dict[str, str]) -> type:
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp += f"-torch-{torch.__version__}"  # objects of two torch versions do not mix

        def note(self) -> Path:
            return Path(self.get_ext_fullpath("srmsnorm._ops")).parent / "built_for.json"

        def run(self) -> None:
            """Leaves beside the libraries what they were built for: a look that must come before loading them."""
            check_compiler()
            build = {**about, "debug": debug(), "sources": sources()}
            super().run()
            self.note().write_text(json.dumps(build) + "\n")

        def copy_extensions_to_source(self) -> None:
            self.note().unlink(missing_ok=True)  # not before: what is in place works until it is replaced
            for other in (ROOT / "srmsnorm").glob("_C.cpython-*"):
                other.unlink()  # of a version that had one for each Python, which would find it first
            super().copy_extensions_to_source()

    return Build


if __name__ == "__main__":
    main()
