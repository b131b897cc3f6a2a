"""The inference log: the answers of endpoints as Parquet in a folder or a bucket. The agent writes it, others read it.

LOG/endpoint=NAME/date=YYYY-MM-DD/hour=HH/<name>.parquet           rows by the hour of their event time
LOG/_labels/endpoint=NAME/date=YYYY-MM-DD/<name>.parquet           true values, by the day they came in
LOG/_failed/endpoint=…                                             requests that got no answer

`query.py` is not part of this face, because it imports DuckDB.
"""

from mlflow_deploy_plugin.inference_log.columns import Array, concat_tables, summarise_lists
from mlflow_deploy_plugin.inference_log.dedup import Sample, combine_hashes, hash_texts
from mlflow_deploy_plugin.inference_log.label_files import BadRow, LabelColumns, LabelEntry, read_label_file
from mlflow_deploy_plugin.inference_log.label_join import LabelMatches, join_labels
from mlflow_deploy_plugin.inference_log.labels import (
    LABEL,
    LABEL_NUMBER,
    LABELS,
    EndpointLabels,
    Label,
    labels_folder,
    labels_table,
    read_labels,
    write_labels,
)
from mlflow_deploy_plugin.inference_log.maintenance import MaintenanceResult, compact, expire, maintain
from mlflow_deploy_plugin.inference_log.reader import MAX_ROWS, InferenceLog, WindowRows, open_log
from mlflow_deploy_plugin.inference_log.scan import is_answered_by, microseconds_of
from mlflow_deploy_plugin.inference_log.stats import LogStats, log_stats
from mlflow_deploy_plugin.inference_log.storage import (
    DAY,
    FAILURES,
    HOUR,
    SKETCHES,
    Hour,
    LogFile,
    LogLocation,
    encode_parquet,
    list_days,
    list_endpoints,
    list_files,
    locate_log,
    wrap_log_errors,
    write_file,
)
from mlflow_deploy_plugin.inference_log.view import View, match_labels, require_endpoint, view_schema, view_tables
from mlflow_deploy_plugin.inference_log.watermarks import (
    GONE_AFTER,
    Watermark,
    expire_watermarks,
    read_watermarks,
    write_watermark,
)
from mlflow_deploy_plugin.inference_log.windows import (
    EPOCH,
    HOUR_US,
    TimeRange,
    Window,
    microseconds,
    parse_duration,
    parse_time_range,
    parse_window,
    window_at,
)

__all__ = [
    "DAY",
    "EPOCH",
    "FAILURES",
    "GONE_AFTER",
    "HOUR",
    "HOUR_US",
    "LABEL",
    "LABELS",
    "LABEL_NUMBER",
    "MAX_ROWS",
    "SKETCHES",
    "Array",
    "BadRow",
    "EndpointLabels",
    "Hour",
    "InferenceLog",
    "Label",
    "LabelColumns",
    "LabelEntry",
    "LabelMatches",
    "LogFile",
    "LogLocation",
    "LogStats",
    "MaintenanceResult",
    "Sample",
    "TimeRange",
    "View",
    "Watermark",
    "Window",
    "WindowRows",
    "combine_hashes",
    "compact",
    "concat_tables",
    "encode_parquet",
    "expire",
    "expire_watermarks",
    "hash_texts",
    "is_answered_by",
    "join_labels",
    "labels_folder",
    "labels_table",
    "list_days",
    "list_endpoints",
    "list_files",
    "locate_log",
    "log_stats",
    "maintain",
    "match_labels",
    "microseconds",
    "microseconds_of",
    "open_log",
    "parse_duration",
    "parse_time_range",
    "parse_window",
    "read_label_file",
    "read_labels",
    "read_watermarks",
    "require_endpoint",
    "summarise_lists",
    "view_schema",
    "view_tables",
    "window_at",
    "wrap_log_errors",
    "write_file",
    "write_labels",
    "write_watermark",
]
