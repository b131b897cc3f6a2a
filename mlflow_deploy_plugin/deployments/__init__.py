"""CONTROL: the `mlflow.deployments` plugin. `lifecycle.py` changes deployments, and `backends/` run the servers.

Other rooms import from here. Modules are loaded on first use, because SQLAlchemy, pandas and pyarrow take seconds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
