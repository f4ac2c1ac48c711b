"""What changed between two CSVs beyond noise."""

import pandas as pd

from benchmarks.record import results

from .common import grid

CELL = [*results.CELL, "provider"]
LEAST = 0.01  # a smaller change is none, however quiet the rounds


def markdown(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """A line for each figure that changed. Where both have the roof, fractions of it are compared, so that a slower
    clock is no change; memory and host times are compared as they are."""
    a, b = _latest(before), _latest(after)
    common = [key for key in a.index if key in b.index]
    lines = [line for key in common if (line := _line(key, a, b))]
    lines.sort(key=lambda line: -abs(float(line["change"].rstrip("%"))))
    head = f"{len(common)} figures in both, {len(a) - len(common)} only before, {len(b) - len(common)} only after."
    if not _same(before, after):
        head += f"\n\n**Another machine or torch**: {_machine(before)} before, {_machine(after)} after."
    if not lines:
        return f"{head}\n\nNothing changed beyond noise.\n"
    table = {name: [line[name] for line in lines] for name in lines[0]}
    return f"{head}\n\n{len(lines)} changed beyond noise:\n\n{grid(table)}\n"


def _latest(frame: pd.DataFrame) -> pd.DataFrame:
    """The last result of each cell and provider, with its run's roof beside it."""
    good = frame[frame["status"] == "ok"].drop_duplicates([*CELL, "date"], keep="last")
    of_roof = [*CELL[:-1], "date"]
    roof = good[good["provider"] == "roof"].set_index(of_roof)["value"].to_dict()
    good = good.assign(roof=[roof.get(tuple(row)) for row in good[of_roof].itertuples(index=False, name=None)])
    return good.drop_duplicates(CELL, keep="last").set_index(CELL)


def _line(key: tuple[object, ...], a: pd.DataFrame, b: pd.DataFrame) -> dict[str, str] | None:
    old, new = a.loc[key], b.loc[key]
    relative = key[-1] != "roof" and pd.notna(old["roof"]) and pd.notna(new["roof"])
    scale = [row["roof"] if relative else 1.0 for row in (old, new)]
    (low_a, mid_a, high_a), (low_b, mid_b, high_b) = (
        [_or(row[name], row["value"]) / unit for name in ("p20", "value", "p80")]
        for row, unit in zip((old, new), scale, strict=True)
    )
    change = mid_b / mid_a - 1
    if abs(change) < LEAST or (low_a <= high_b and low_b <= high_a):
        return None
    suite, metric, op, residual, dtype, batch, n, dim, threads, provider = map(str, key)
    faster = (change < 0) != (old["unit"] == "tokens/s")
    return {
        "cell": f"{suite} {metric}, {op}{', residual' if residual == 'True' else ''}, {dtype}, {batch} x {n} x {dim}",
        "threads": threads,
        "provider": provider,
        "before": f"{old['value']:.6g} {old['unit']}",
        "after": f"{new['value']:.6g} {new['unit']}",
        "of the roof": f"{1 / mid_a:.3f} → {1 / mid_b:.3f}" if relative else "",
        "change": f"{change:+.1%}",
        "": "better" if faster else "worse",
    }


def _or(value: float, other: float) -> float:
    return other if pd.isna(value) else value


def _machine(frame: pd.DataFrame) -> str:
    first = frame.iloc[0]
    return f"{first['device']}, torch {first['torch']}"


def _same(before: pd.DataFrame, after: pd.DataFrame) -> bool:
    return _machine(before) == _machine(after)
