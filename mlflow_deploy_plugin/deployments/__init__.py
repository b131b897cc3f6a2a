"""CONTROL: the `mlflow.deployments` plugin. `client.py` translates, `lifecycle.py` decides, `backends/` act.

Other rooms import from here. A name's module is loaded when the name is imported: SQLAlchemy, pandas and pyarrow take
seconds that most callers need not wait for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
