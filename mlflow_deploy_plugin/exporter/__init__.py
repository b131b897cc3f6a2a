"""Export a version as files that do not need onnxserve: the graph, a wheel, or a bundle for offline machines."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
