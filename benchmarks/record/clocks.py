"""The GPU's clock and what holds it back, read while it works (NVML, read only)."""

import statistics
from typing import Any

import torch

# Bits of NVML's clock event reasons. Idle and clocks that were set on purpose are not among them.
REASONS = {
    0x04: "power",
    0x08: "hardware slowdown",
    0x20: "thermal (software)",
    0x40: "thermal (hardware)",
    0x80: "power brake",
}


class Clocks:
    """Samples since the last reset; nothing where NVML is not to be had."""

    def __init__(self, device: str) -> None:
        self.handle: Any = None
        self.why = ""
        self.reset()
        if device != "cuda":
            return
        try:
            import pynvml

            pynvml.nvmlInit()
            uuid = f"GPU-{torch.cuda.get_device_properties('cuda').uuid}"
            self.nvml, self.handle = pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except Exception as error:  # no package, no driver, no permission: a run without clocks is still a run
            self.why = f"clocks are not noted: {error}"

    def reset(self) -> None:
        self.megahertz: list[int] = []
        self.reasons = 0

    def sample(self) -> None:
        if self.handle is not None:
            self.megahertz.append(self.nvml.nvmlDeviceGetClockInfo(self.handle, self.nvml.NVML_CLOCK_SM))
            self.reasons |= self.nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self.handle)

    def row(self) -> dict[str, Any]:
        """Median MHz of the multiprocessors, and what held the clock back."""
        if not self.megahertz:
            return {}
        held = [name for bit, name in REASONS.items() if self.reasons & bit]
        return {"clock": round(statistics.median(self.megahertz)), "throttle": " + ".join(held) or "none"}
