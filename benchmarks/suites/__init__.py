"""The suites: each answers one question and writes one CSV. A suite has NAME, QUESTION and run(plan)."""

from types import ModuleType

from . import cpu, features, fusion, host, layouts, memory, model, neighbours, small, sweep, tables

SUITES: dict[str, ModuleType] = {
    suite.NAME: suite
    for suite in (tables, sweep, layouts, small, neighbours, host, memory, model, cpu, fusion, features)
}
