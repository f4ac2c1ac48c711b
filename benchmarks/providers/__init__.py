"""What is compared. A provider is a decorated class in a file of this folder that is imported here."""

from . import own, pytorch, third_party  # noqa: F401 - each enters its classes in REGISTRY
from .provider import DEFAULT, EPS, REGISTRY, Gating, Provider, load

__all__ = ["DEFAULT", "EPS", "REGISTRY", "Gating", "Provider", "load"]
