"""Every feature by name, group by group, in the order of the table."""

from . import compiling, deployment, derivatives, dtensor, tensors, tracers, training
from .feature import Feature

GROUPS = (compiling, training, deployment, derivatives, tensors, tracers, dtensor)
FEATURES: dict[str, Feature] = {name: found for group in GROUPS for name, found in group.FEATURES.items()}
