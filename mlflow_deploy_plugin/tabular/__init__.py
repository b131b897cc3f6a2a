"""Files of rows: CSV, JSON, JSON Lines and Parquet. `--help` imports this package, so pyarrow is imported lazily."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
