"""Batch prediction without a server: files of any size, in a folder or a bucket, on all local cores or on Spark."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
