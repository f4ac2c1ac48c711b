"""Where a result comes from: the columns that every row of a CSV carries."""

import datetime
import os
import pathlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def provenance(device: str) -> dict[str, str]:
    import srmsnorm

    gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if gpu else _processor(),
        "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if gpu else "",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "" if gpu else "",
        "triton": _version("triton") if gpu else "",
        "srmsnorm": srmsnorm.__version__,
        "commit": commit(srmsnorm.__version__),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def commit(fallback: str) -> str:
    """SRMSNORM_COMMIT, or what git says of this tree, or the version."""
    if named := os.environ.get("SRMSNORM_COMMIT"):
        return named
    head = _run("git", "-C", str(REPOSITORY), "rev-parse", "HEAD")
    if not head:
        return fallback
    changed = _run("git", "-C", str(REPOSITORY), "status", "--porcelain", "--untracked-files=no")
    return f"{head}-dirty" if changed else head


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _run(*command: str) -> str:
    """The last line a command prints, empty where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (done.stdout.strip().splitlines() or [""])[-1]
