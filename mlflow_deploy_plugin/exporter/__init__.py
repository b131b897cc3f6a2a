"""Exports a version as files that need none of us: the bare graph, a wheel, a bundle for machines without network."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
