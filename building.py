"""What every build has in common, in place, from an archive or for the wheel: sources and flags. Knows no torch."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHITECTURES = ["8.0", "8.6", "8.9", "9.0", "10.0", "12.0"]
OLDEST_TOOLKIT = (12, 8)


def version() -> str:
    return re.findall(r'^__version__ = "(.+)"', (ROOT / "srmsnorm/__init__.py").read_text(), re.M)[0]


def find(pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def sources() -> str:
    files = [*sorted(ROOT.glob("*.py")), *sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def debug() -> bool:
    return os.environ.get("DEBUG", "0") not in ("", "0")


def compile_flags() -> dict[str, list[str]]:
    common = ["-std=c++20", *(["-O0", "-g", "-UNDEBUG"] if debug() else ["-O3", "-DNDEBUG"])]
    # torch's own flags forbid the conversions and operators of the 16-bit types. Small: kernels take a quarter of the
    # space (forward.cu for one architecture 1.1 MB for 4.4, and 3.0 with -lineinfo, which profilers want).
    small = ["-lineinfo"] if debug() else ["--compress-mode=size"]
    forbidden = ["HALF_OPERATORS", "HALF_CONVERSIONS", "HALF2_OPERATORS", "BFLOAT16_CONVERSIONS"]
    return {
        "cxx": [
            *common,
            *([] if debug() else ["-g0"]),
            *["-fopenmp", "-Wall", "-idirafter", str(ROOT / "csrc/compat")],
            *sanitizer_flags(),
        ],
        # constexpr functions run on the GPU too: torch's build says so, the wheel's is another.
        "nvcc": [*common, *small, "--expt-relaxed-constexpr", *(f"-U__CUDA_NO_{name}__" for name in forbidden)],
    }


def sanitizer_flags() -> list[str]:
    sanitizer = os.environ.get("SRMSNORM_SANITIZE", "")
    if not sanitizer:
        return []
    also = ",undefined" if sanitizer == "address" else ""
    # vptr would need the types of torch's classes, which its libraries do not show.
    common = ["-fno-sanitize=vptr", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g1", "-O1", "-Wno-tsan"]
    return [f"-fsanitize={sanitizer}{also}", *common]


def toolkit_version(home: Path) -> tuple[int, ...]:
    found = re.search(r"release (\d+)\.(\d+)", ask_nvcc(home, "--version"))
    return tuple(map(int, found.groups())) if found else (0, 0)


def ask_nvcc(home: Path, question: str) -> str:
    return subprocess.run([home / "bin/nvcc", question], capture_output=True, text=True).stdout


def named_architectures() -> str:
    return re.sub(r"[\s;,]+", ";", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip())
