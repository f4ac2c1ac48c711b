"""What works and what does not: a table of yes and no, and every no with what happened."""

import pandas as pd

MARKS = ["", "¹", "²", "³"]  # by machine
CELL = ["metric", "op", "provider"]


def page(frames: list[pd.DataFrame]) -> str:
    """What docs/pytorch.md says of the features: a cell is of the first machine that has it."""
    frame = pd.concat([frame.assign(mark=mark) for frame, mark in zip(frames, MARKS, strict=False)])
    frame = frame.drop_duplicates(CELL)
    machines = [f"{mark} {_machine(part)}".strip() for mark, part in frame.groupby("mark", sort=False)]
    return "\n\n".join([*markdown(frame, False), "  \n".join(machines)]) + "\n"


def _machine(frame: pd.DataFrame) -> str:
    """Where and when; parts are of the last one's commit, at least as to what they found."""
    last = frame.iloc[-1]
    versions = ["torch", *(["cuda", "triton"] if last["cuda"] else [])]
    where = ", ".join([last["device"], *(f"{name} {last[name]}" for name in versions)])
    commits = ", ".join(commit[:12] for commit in dict.fromkeys(frame["commit"]))
    return f"{where}; srmsnorm {last['srmsnorm']} ({commits}), {last['date'][:10]}."


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
            by_name = {row["provider"]: row for row in rows.to_dict("records")}
            for name in candidates:
                cells[name].append(_word(by_name[name]) if name in by_name else "not run")
            failed = [row for row in by_name.values() if row["status"] != "ok"]
            reasons += [f"- {feature}, {row['provider']}: `{row['status'][:160].replace('`', '')}`" for row in failed]
    table = pd.DataFrame(cells).to_markdown(index=False, disable_numparse=True)
    return [table, "What happened where it says no:\n\n" + "\n".join(reasons)] if reasons else [table]


def _word(row: dict[str, str]) -> str:
    return ("yes" if row["status"] == "ok" else "no") + row.get("mark", "")
