"""How a figure is taken: what an operation is, when a result is right, how time and memory are measured."""
