"""A saved model as a function of named arrays: its files, its schema, its session, and batches of requests.

Imports neither mlflow, pandas nor any training framework, and ONNX Runtime only when the first session is opened.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
