"""Whether dist/ holds a release: make release-check [ARGS=--some], --some for a wheel that lacks versions of torch.

The wheel and the source distribution by their contents, metadata and licence, and whether the long description renders.
"""

from __future__ import annotations

import email
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Any

from build_wheel import KERNELS, TORCHES
from elftools.elf.elffile import ELFFile  # of auditwheel

from building import ROOT, version

MOST_BYTES = 100 << 20
# What the libraries may need of the machine and of torch.
NEEDED = r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|gomp)\.so\.\d+|ld-linux.*|lib(torch|torch_cpu|torch_python|c10)\.so"

wrong: list[str] = []


def expect(condition: object, complaint: str) -> None:
    if not condition:
        wrong.append(complaint)


def only(pattern: str) -> Path:
    found = sorted((ROOT / "dist").glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"srmsnorm: dist/ must hold one {pattern}, not {len(found)}")
    return found[0]


def check_metadata(text: str, where: str) -> None:
    about: Message = email.message_from_string(text)
    wanted = {"Name": "srmsnorm", "Version": version(), "License-Expression": "MIT", "License-File": "LICENSE"}
    wanted |= {"Requires-Python": ">=3.10", "Requires-Dist": "torch>=2.11"}
    for name, value in wanted.items():
        expect(about.get_all(name) == [value], f"{where}: {name} is {about.get_all(name)}, not {value}")
    expect("## Install" in str(about.get_payload()), f"{where}: README.md is not its long description")


def check_wheel(path: Path, some: bool) -> None:
    expect(path.stat().st_size < MOST_BYTES, f"{path.name} is larger than {MOST_BYTES >> 20} MiB")
    expect(
        re.fullmatch(rf"srmsnorm-{version()}-cp310-abi3-manylinux_2_\d+_\w+\.whl", path.name), f"the name {path.name}"
    )
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        package, about = Path(folder, "srmsnorm"), Path(folder, f"srmsnorm-{version()}.dist-info")
        check_metadata((about / "METADATA").read_text(), path.name)
        licence = (about / "licenses/LICENSE").read_text()
        expect(licence == (ROOT / "LICENSE").read_text(), "another LICENSE in the wheel")
        minors = json.loads((package / "built_for.json").read_text())["torch"]
        expect(some or minors == list(TORCHES), f"the wheel is for torch {', '.join(minors)} alone")
        folders = [f"torch{minor.replace('.', '_')}" for minor in minors]
        libraries = {KERNELS, *(f"{name}/{library}.abi3.so" for name in folders for library in ("_ops", "_C"))}
        sources = {file for file in tracked("srmsnorm") if file.endswith((".py", ".typed", ".cmake"))}
        held = {file.relative_to(package).as_posix() for file in package.rglob("*") if file.is_file()}
        lost = {f.removeprefix("srmsnorm/") for f in sources} | libraries | {"built_for.json"}
        expect(held == lost, f"in the wheel, or not, against what should be: {sorted(held ^ lost)}")
        for library in libraries & held:
            check_library(package / library)


def check_library(path: Path) -> None:
    with path.open("rb") as file:
        elf = ELFFile(file)
        dynamic: Any = elf.get_section_by_name(".dynamic")
        dynsym: Any = elf.get_section_by_name(".dynsym")
        needed = [tag.needed for tag in dynamic.iter_tags("DT_NEEDED")]
        symbols = [symbol.name for symbol in dynsym.iter_symbols()]
    foreign = [name for name in needed if not re.fullmatch(rf"{NEEDED}|{KERNELS}", name)]
    expect(not foreign, f"{path.parent.name}/{path.name} needs {foreign}")
    runtime = [name for name in symbols if re.match(r"_*cuda[A-Z]", name)]
    expect(not runtime, f"{path.parent.name}/{path.name} shows or wants the CUDA runtime's {runtime[:3]}")


def check_source(path: Path) -> None:
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        check_metadata(archive.extractfile(f"srmsnorm-{version()}/PKG-INFO").read().decode(), path.name)  # type: ignore[union-attr]
    lost = {file for file in tracked() if not file.startswith((".ci/", ".gitignore"))} - names
    expect(not lost, f"not in the source distribution: {sorted(lost)}")
    expect(not [name for name in names if name.endswith((".so", "built_for.json"))], "what was built is in the sources")


def tracked(*folders: str) -> list[str]:
    done = subprocess.run(["git", "ls-files", *folders], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.split()


def main() -> None:
    wheel, source = only("*.whl"), only("*.tar.gz")
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    expect(first and first[1] == version(), f"CHANGELOG.md does not begin with {version()}")
    check_wheel(wheel, "--some" in sys.argv)
    check_source(source)
    for tool in (["twine", "check", "--strict", wheel, source], ["check_wheel_contents", wheel]):
        done = subprocess.run([sys.executable, "-m", *map(str, tool)], capture_output=True, text=True)
        expect(done.returncode == 0, done.stdout + done.stderr)
    if wrong:
        raise SystemExit("\n".join(f"srmsnorm: {complaint}" for complaint in wrong))
    sizes = [f"{path.name}, {path.stat().st_size / 2**20:.1f} MiB" for path in (wheel, source)]
    print("fit to be released:", *sizes, sep="\n  ")


if __name__ == "__main__":
    main()
