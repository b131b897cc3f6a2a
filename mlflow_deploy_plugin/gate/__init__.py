"""The gate: the requirements that a version has to meet before it is promoted, and the promotion itself.

A name is imported on first use, because the console needs only the policies, and the process that measures a model
(`gate/checks/budget.py`) must not hold mlflow and pandas in memory.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
