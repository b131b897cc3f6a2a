from tests.support.exports import forest, forest_rows, mixed, network, tensor

__all__ = ["forest", "forest_rows", "mixed", "network", "tensor"]
