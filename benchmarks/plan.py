"""What a run was asked for. None means: the suite's own choice for the device."""

import dataclasses
import pathlib
from typing import Any

import torch
from progress import Reporter
from provenance import provenance
from providers import DEFAULT, Provider, load
from results import Results

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


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
    """A suite's CSV and progress together."""

    def __init__(self, plan: Plan, suite: str, total: int) -> None:
        self.results = Results(plan.out / f"{suite}.csv", {"suite": suite, **provenance(plan.device)})
        self.reporter = Reporter(suite, total)
        self.noted: set[str] = set()

    def __enter__(self) -> "Recorder":
        self.reporter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.reporter.__exit__(*error)
        self.results.close()

    def failed(self, provider: str, status: str, **cell: Any) -> None:
        """A row without a figure; said once on the way."""
        if (line := f"{provider}: {status}") not in self.noted:
            self.noted.add(line)
            self.reporter.note(line)
        self.results.add(provider=provider, status=status, **cell)
