"""A saved model as a function of named arrays. Imports neither mlflow, pandas nor a training framework."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
