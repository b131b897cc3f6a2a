"""Batch prediction without a server: files of any size, in a folder or a bucket, by all cores or by Spark."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
