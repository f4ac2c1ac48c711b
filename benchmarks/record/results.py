"""The CSV of a suite: one row a result, written as soon as it is measured."""

import csv
import pathlib
from typing import Any

FIELDS = [
    "suite",
    "metric",  # speed, memory
    "op",
    "residual",
    "dtype",
    "batch",
    "n",
    "dim",
    "provider",
    "unit",
    "bytes",  # that the operation must move
    "value",  # empty where status is not ok
    "p20",
    "p80",
    "rounds",
    "repeats",  # calls timed, over all rounds
    "status",
    "protocol",
    "clock",  # MHz of the multiprocessors, median
    "throttle",  # what held the clock back
    "device",
    "driver",
    "threads",
    "torch",
    "cuda",
    "triton",
    "srmsnorm",
    "commit",
    "date",
]


# What a result is of, beside its provider.
CELL = ("suite", "metric", "op", "residual", "dtype", "batch", "n", "dim", "threads")
Key = tuple[str, ...]


class Results:
    """Writes rows to a new file, or after those of an earlier part; what was written stays when the run is stopped."""

    def __init__(self, path: pathlib.Path, common: dict[str, str], append: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.common = common
        earlier = read_rows(path) if append and path.exists() else []
        for name in ("suite", "device", "torch"):
            if others := {row[name] for row in earlier} - {common[name]}:
                raise ValueError(f"{path} holds results of another {name}, {', '.join(others)}; give another --out")
        self.held = {self._key(row, row["provider"]) for row in earlier if is_result(row)}
        self._file = path.open("a" if earlier else "w", newline="")
        self._writer = csv.DictWriter(self._file, FIELDS, lineterminator="\n")
        if not earlier:
            self._writer.writeheader()

    @staticmethod
    def _key(cell: dict[str, Any], provider: str) -> Key:
        return (*(str(cell.get(name, "")) for name in CELL), provider)

    def has(self, cell: dict[str, Any], providers: list[str]) -> bool:
        return all(self._key({**self.common, **cell}, name) in self.held for name in providers)

    def add(self, **row: Any) -> None:
        self._writer.writerow({**self.common, "status": "ok", **row})
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def is_result(row: dict[str, str]) -> bool:
    """A figure, or a word that another run would repeat."""
    return not row["status"].startswith(("not installed", "out of memory"))


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != FIELDS:
            raise ValueError(f"{path} is not a CSV of this benchmark, or one of another version")
        return list(reader)


def join(parts: list[pathlib.Path], out: pathlib.Path) -> int:
    """One CSV out of several of one suite; a row that stands in two is taken once. The number of rows."""
    rows = [row for part in parts for row in read_rows(part)]
    if len(suites := {row["suite"] for row in rows}) > 1:
        raise ValueError(f"parts of different suites: {', '.join(sorted(suites))}")
    unique = list({tuple(row.values()): row for row in rows}.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(unique)
    return len(unique)
