"""The gate, which checks a version against a policy before its promotion, and the promotion.

Names are imported on first use, because the console needs only the policies, and the process that measures a model
(`gate/checks/budget.py`) must not load mlflow and pandas.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
