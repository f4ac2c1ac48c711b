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
    "value",  # empty where status is not ok
    "p20",
    "p80",
    "rounds",
    "repeats",  # calls timed, over all rounds
    "status",
    "protocol",
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


class Results:
    """Appends rows to a new file; what was written stays when the run is stopped."""

    def __init__(self, path: pathlib.Path, common: dict[str, str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.common = common
        self.rows = 0
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, FIELDS, lineterminator="\n")
        self._writer.writeheader()

    def add(self, **row: Any) -> None:
        self._writer.writerow({**self.common, "status": "ok", **row})
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        self._file.close()
