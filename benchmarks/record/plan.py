"""What a run was asked for. None means: the suite's own choice for the device."""

import dataclasses
import pathlib

from benchmarks.providers import DEFAULT, Provider, load


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
    models: list[str] | None = None  # these and the next three: of the suite `model`
    modes: list[str] | None = None
    sizes: list[str] | None = None
    compile_times: bool = False  # time the compilers as well
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
