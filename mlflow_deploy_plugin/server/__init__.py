"""SERVE: requests in, answers out. Imports neither mlflow nor pandas.

These are the names that other rooms use. Each is imported from its module on first use: a side process must not load
the supervisor, nor the command line the data plane.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
