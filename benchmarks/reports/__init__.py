"""From a CSV alone: Markdown, plots, pages. The same CSV gives the same bytes."""

import pandas as pd

from . import cells, features, fusion, host, memory, model, small, tables
from .common import failures, head, read, without_gpu

__all__ = ["markdown", "read"]

BODIES = {
    "tables": tables.markdown,
    "sweep": cells.markdown,
    "layouts": lambda frame, published: cells.markdown(frame, published=False),
    "neighbours": lambda frame, published: cells.markdown(frame, published=False),
    "cpu": cells.markdown,
    "small": small.markdown,
    "host": host.markdown,
    "memory": memory.markdown,
    "model": model.markdown,
    "fusion": fusion.markdown,
    "features": features.markdown,
}


def markdown(frame: pd.DataFrame, published: bool | None = None) -> str:
    """Everything a suite prints; the published figures beside those of a GPU."""
    if frame.empty:
        return "Nothing was measured.\n"
    published = not without_gpu(frame) if published is None else published
    suite = frame["suite"].iloc[0]
    body = BODIES[suite](frame, published)
    return "\n\n".join([*head(frame), *body, *failures(frame)]) + "\n"
