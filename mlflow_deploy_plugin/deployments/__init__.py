"""CONTROL: the `mlflow.deployments` plugin. `lifecycle.py` changes deployments, and `backends/` run the servers.

Other rooms import from this package. Its modules are loaded on first use, because importing pandas takes seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
