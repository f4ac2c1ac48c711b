"""What is being measured, on stderr: a bar on a terminal, a line for each new case elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Reporter:
    def __init__(self, suite: str, total: int) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.suite, self.case, self.start = suite, "", time.monotonic()
        self.bar = Progress(
            TextColumn(f"{suite} {{task.description}}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=total)

    def __enter__(self) -> "Reporter":
        self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bar.stop()

    def new_case(self, case: str) -> None:
        self.case = case
        if not self.console.is_terminal:
            self.console.print(f"{time.monotonic() - self.start:6.1f} s  {self.suite}: {case}", soft_wrap=True)

    def tick(self, what: str) -> None:
        """One more step begins."""
        self.bar.update(self.task, description=f"{self.case}: {what}", advance=1)

    def expect(self, total: int) -> None:
        self.bar.update(self.task, total=total)

    def skip(self, steps: int) -> None:
        """A case that an earlier part measured."""
        self.bar.update(self.task, advance=steps)

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)
