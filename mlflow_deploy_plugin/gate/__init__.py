"""The gate: what a version of a model has to prove before it is promoted, and the promotion itself.

A name is imported from its module on first use. The console needs the policies only, and must not wait for mlflow and
pandas; the process that measures a model (`gate/checks/budget.py`) must not hold them in memory.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
