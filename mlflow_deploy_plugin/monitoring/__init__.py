"""Monitoring: judge the rows of a window, log the report, and record and send alerts."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
