"""The benchmark. run.py, tune.py and counters.py are its commands, README.md says what they measure.

providers/ is what is compared, models/ what that is part of, record/ what a run was asked for and its CSV, protocol/
how a figure is taken, suites/ the questions; each uses those before it. reports/ makes Markdown, plots and pages from
the CSVs alone. results/ and examples/ hold CSVs and what was made from them.
"""
