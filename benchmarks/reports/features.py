"""What works and what does not: a table of yes and no, and every no with what happened."""

import pandas as pd


def page(frame: pd.DataFrame) -> str:
    """What docs/pytorch.md says of the features."""
    first = frame.iloc[0]
    versions = ["torch", *(["cuda", "triton"] if first["cuda"] else [])]
    where = ", ".join([first["device"], *(f"{name} {first[name]}" for name in versions)])
    commit = f"{first['srmsnorm']} ({first['commit'][:12]})"
    return "\n\n".join([*markdown(frame, False), f"{where}; srmsnorm {commit}, {first['date'][:10]}."]) + "\n"


def markdown(frame: pd.DataFrame, published: bool) -> list[str]:
    candidates = list(dict.fromkeys(frame["provider"]))
    cells: dict[str, list[str]] = {"": [], **{name: [] for name in candidates}}
    reasons = []
    for group, features in frame.groupby("metric", sort=False):
        cells[""].append(f"**{group}**")
        for name in candidates:
            cells[name].append("")
        for feature, rows in features.groupby("op", sort=False):
            cells[""].append(feature)
            status = rows.set_index("provider")["status"]
            for name in candidates:
                cells[name].append("" if name not in status.index else "yes" if status[name] == "ok" else "no")
            failed = [name for name in candidates if status.get(name, "ok") != "ok"]
            reasons += [f"- {feature}, {name}: `{status[name][:160].replace('`', '')}`" for name in failed]
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    return [table, "What happened where it says no:\n\n" + "\n".join(reasons)] if reasons else [table]
