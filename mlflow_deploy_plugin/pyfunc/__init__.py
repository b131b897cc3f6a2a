"""The side processes of a worker: mlflow, pandas and shap live here, not in the worker.

`Scorer` is loaded on first use, because mlflow.pyfunc takes a second.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
