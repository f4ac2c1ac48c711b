"""What was asked for and what was found: the plan of a run, the CSV of a suite, and what stands beside each figure."""
