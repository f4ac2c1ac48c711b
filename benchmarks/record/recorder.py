"""What a suite finds, on its way to the CSV: rows, progress and clocks together."""

from typing import Any

from benchmarks.providers import Provider

from .clocks import Clocks
from .plan import Plan
from .progress import Reporter
from .provenance import provenance
from .results import Results


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

    def skips(self, keys: list[dict[str, Any]], providers: list[Provider], steps: int) -> bool:
        """Whether it holds the results of all these; the steps that they would have taken count as done then."""
        held = all(self.has(key, [provider.name for provider in providers]) for key in keys)
        if held:
            self.reporter.skip(steps)
        return held

    def new_case(self, case: str) -> None:
        self.clocks.reset()
        self.reporter.new_case(case)

    def add(self, **row: Any) -> None:
        self.results.add(**self.clocks.row(), **row)

    def failed(self, statuses: dict[str, str], **cell: Any) -> None:
        """A row without a figure for each provider that has none."""
        for provider, status in statuses.items():
            self.note(f"{provider}: {status}")
            self.results.add(provider=provider, status=status, **cell)

    def note(self, line: str) -> None:
        """Said once on the way."""
        if line not in self.noted:
            self.noted.add(line)
            self.reporter.note(line)
