"""Files of rows: CSV, JSON, JSON Lines and Parquet, read record by record and written whole or not at all.

pyarrow is imported when a Parquet file is read or written; `--help` imports this room.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
