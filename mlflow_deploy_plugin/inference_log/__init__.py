"""The inference log: the answers of endpoints as Parquet in a folder or a bucket. The agent writes it, others read it.

LOG/endpoint=NAME/date=YYYY-MM-DD/hour=HH/<name>.parquet           rows by the hour of their event time
LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet           true values, by the day they came in
LOG/_failed/endpoint=…                                             requests that got no answer
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
