"""The inference log: what was answered, as Parquet in a folder or a bucket. The agent writes it, everything else reads.

LOG/endpoint=NAME/date=YYYY-MM-DD/hour=HH/<name>.parquet           rows by the hour of their event time
LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet           what turned out to be true, by the day it came in
"""

from mlflow_deploy_plugin.inference_log.storage import LogLocation, locate_log

__all__ = ["LogLocation", "locate_log"]
