"""The registered model `toy` of the gate's tests."""

from tests.gate.conftest import folders, registry

__all__ = ["folders", "registry"]
