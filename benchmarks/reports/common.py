"""What the reports share: reading a CSV, tables, and when a figure is too noisy to be printed."""

import pathlib
from collections.abc import Callable

import pandas as pd

ORDER = ["ours", "auto", "tr", "to", "toc", "tocm", "rms", "quack", "liger", "fla", "mamba", "flashinfer", "roof"]
COLUMNS = {
    "auto": 'ours under inline_under_compile("auto")',
    "tr": "Triton kernel of this benchmark",
    "to": "eager PyTorch",
    "toc": "torch.compile",
    "tocm": "torch.compile, max-autotune",
    "rms": "F.rms_norm",
    "quack": "quack",
    "liger": "Liger-Kernel",
    "fla": "flash-linear-attention",
    "mamba": "mamba_ssm, with a weight, not counted among the others",
    "flashinfer": "flashinfer, with a weight, not counted among the others",
}
UNLIKE = ("flashinfer", "mamba")  # they multiply by a weight: shown, and not counted among the others
# p20 to p80 over the median above which a figure is no figure. Host times and CPUs spread by nature.
NOISE = {"sweep": 0.05, "neighbours": 0.05, "small": 0.1, "tables": 0.5, "host": 0.6}
NOISE_CPU = 0.6
NOISY = "noisy"
NUMBERS = ("value", "p20", "p80", "n", "dim", "batch", "bytes", "clock")


def read(path: pathlib.Path) -> pd.DataFrame:
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column])
    return frame


def without_gpu(frame: pd.DataFrame) -> bool:
    return bool(frame["cuda"].iloc[0] == "")


def noisy(row: pd.Series) -> bool:
    limit = NOISE_CPU if row["cuda"] == "" else NOISE.get(row["suite"], 0.1)
    return row["unit"] != "MiB" and bool((row["p80"] - row["p20"]) / row["value"] > limit)


def ordered(names: pd.Series) -> list[str]:
    there = list(dict.fromkeys(names))
    return [name for name in ORDER if name in there] + [name for name in there if name not in ORDER]


def grid(cells: dict[str, list[str]]) -> str:
    return pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True, colalign=["right"] * len(cells))


def figure(rows: pd.DataFrame, form: Callable[[float], str]) -> str:
    """The last result's figure, or a word for why there is none."""
    if rows.empty:
        return ""
    row = rows.iloc[-1]
    if row["status"] != "ok":
        return str(row["status"]).split(":")[0]
    return NOISY if noisy(row) else form(row["value"])


def legend(names: list[str]) -> list[str]:
    known = "; ".join(f"`{name}` {COLUMNS[name]}" for name in names if name in COLUMNS)
    return [known] if known else []


def head(frame: pd.DataFrame) -> list[str]:
    """What was measured, where and when."""
    first, gpu = frame.iloc[0], not without_gpu(frame)
    versions = [f"torch {first['torch']}"]
    if gpu:
        versions += [f"CUDA {first['cuda']}", f"driver {first['driver']}", f"Triton {first['triton']}"]
    else:
        versions += [f"{' or '.join(dict.fromkeys(frame['threads']))} threads"]
    runs = frame.drop_duplicates("date")
    commits = ", ".join(dict.fromkeys(runs["commit"]))
    dates = " to ".join(dict.fromkeys([runs["date"].min(), runs["date"].max()]))
    parts = f" in {len(runs)} parts" if len(runs) > 1 else ""
    lines = [
        f"# {first['suite']}: {first['device']}",
        f"{', '.join(versions)}; srmsnorm {first['srmsnorm']} ({commits}), {dates}{parts}.{_clocks(frame)}",
    ]
    if not gpu:
        lines.append(
            "**CPU edition**: no GPU was used. Sizes are small, times are by the wall clock, and nothing here says "
            "anything about a GPU."
        )
    return lines


def _clocks(frame: pd.DataFrame) -> str:
    seen = frame[frame["clock"].notna()]
    if seen.empty:
        return ""
    low, high = int(seen["clock"].min()), int(seen["clock"].max())
    held = [word for word in dict.fromkeys(seen["throttle"]) if word != "none"]
    what = f"held back by {' and '.join(held)} at times" if held else "never held back"
    return f" Multiprocessors at {low} MHz, {what}." if low == high else (
        f" Multiprocessors at {low} to {high} MHz, {what}."
    )  # fmt: skip


def failures(frame: pd.DataFrame) -> list[str]:
    if frame["suite"].iloc[0] == "features":  # says so itself
        return []
    failed = frame[frame["status"] != "ok"].drop_duplicates(["provider", "status"])
    lines = [f"- {row.provider}: {row.status}" for row in failed.itertuples()]
    good = frame[frame["status"] == "ok"]
    if count := sum(noisy(row) for _, row in good.iterrows()):
        lines.append(f"- {NOISY}: {count} of {len(good)} figures, whose rounds spread too widely; measure them again")
    return ["Without a figure:\n\n" + "\n".join(lines)] if lines else []


def insert(path: pathlib.Path, markers: str, text: str) -> bool:
    """Puts the text between the file's two markers. Whether anything changed."""
    begin, end = f"<!-- {markers}:begin -->\n", f"<!-- {markers}:end -->"
    old = path.read_text(encoding="utf-8")
    if old.count(begin) != 1 or old.count(end) != 1:
        raise ValueError(f"{path} needs one {begin.strip()} and one {end}")
    new = old.partition(begin)[0] + begin + text + end + old.partition(end)[2]
    path.write_text(new, encoding="utf-8", newline="\n")
    return new != old
