"""What a run was asked for. None means: the suite's own choice for the device."""

import dataclasses
import pathlib
from typing import Any

from clocks import Clocks
from progress import Reporter
from provenance import provenance
from providers import DEFAULT, Provider, load
from results import Results


@dataclasses.dataclass(frozen=True)
class Plan:
    device: str
    out: pathlib.Path
    providers: list[str] | None = None
    dims: list[int] | None = None
    dtypes: list[str] | None = None
    rows: list[int] | None = None
    elements: int | None = None
    quick: bool = False
    ops: list[str] | None = None
    rounds: int | None = None
    compiled_dims: list[int] | None = None  # where torch.compile takes part; None: everywhere
    jobs: int | None = None  # processes that compile ahead
    append: bool = False  # go on with the CSV that is there

    @property
    def gpu(self) -> bool:
        return self.device == "cuda"

    def chosen(self, default: tuple[str, ...] = DEFAULT) -> tuple[list[Provider], dict[str, str]]:
        """(providers that are there, what is wrong with the others). One that does not run on this device is mentioned
        only where it was asked for by name."""
        there, missing = load(self.providers or list(default), self.device)
        if self.providers is None:
            missing = {name: why for name, why in missing.items() if not why.startswith("does not run")}
        return there, missing


class Recorder:
    """A suite's CSV, progress and clocks together."""

    def __init__(self, plan: Plan, suite: str, total: int = 0) -> None:
        common = {"suite": suite, **provenance(plan.device)}
        self.results = Results(plan.out / f"{suite}.csv", common, plan.append)
        self.reporter = Reporter(suite, total)
        self.clocks = Clocks(plan.device)
        self.noted: set[str] = set()

    def __enter__(self) -> "Recorder":
        self.reporter.__enter__()
        if self.clocks.why:
            self.note(self.clocks.why)
        return self

    def __exit__(self, *error: Any) -> None:
        self.reporter.__exit__(*error)
        self.results.close()

    def has(self, key: dict[str, Any], providers: list[str]) -> bool:
        """Whether an earlier part holds these results."""
        return self.results.has(key, providers)

    def new_case(self, case: str) -> None:
        self.clocks.reset()
        self.reporter.new_case(case)

    def add(self, **row: Any) -> None:
        self.results.add(**self.clocks.row(), **row)

    def failed(self, provider: str, status: str, **cell: Any) -> None:
        """A row without a figure."""
        self.note(f"{provider}: {status}")
        self.results.add(provider=provider, status=status, **cell)

    def note(self, line: str) -> None:
        """Said once on the way."""
        if line not in self.noted:
            self.noted.add(line)
            self.reporter.note(line)
