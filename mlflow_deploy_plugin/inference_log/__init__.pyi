from .label_files import (
    BadRow as BadRow,
)
from .label_files import (
    LabelColumns as LabelColumns,
)
from .label_files import (
    LabelEntry as LabelEntry,
)
from .label_files import (
    read_label_file as read_label_file,
)
from .labels import (
    LABEL as LABEL,
)
from .labels import (
    LABEL_NUMBER as LABEL_NUMBER,
)
from .labels import (
    LABELS as LABELS,
)
from .labels import (
    EndpointLabels as EndpointLabels,
)
from .labels import (
    Label as Label,
)
from .labels import (
    LabelMatches as LabelMatches,
)
from .labels import (
    join_labels as join_labels,
)
from .labels import (
    labels_folder as labels_folder,
)
from .labels import (
    labels_table as labels_table,
)
from .labels import (
    read_labels as read_labels,
)
from .labels import (
    write_labels as write_labels,
)
from .maintenance import (
    MaintenanceResult as MaintenanceResult,
)
from .maintenance import (
    compact as compact,
)
from .maintenance import (
    expire as expire,
)
from .maintenance import (
    maintain as maintain,
)
from .query import (
    Query as Query,
)
from .query import (
    QueryResult as QueryResult,
)
from .query import (
    limit_memory as limit_memory,
)
from .query import (
    run_query as run_query,
)
from .reader import (
    MAX_ROWS as MAX_ROWS,
)
from .reader import (
    InferenceLog as InferenceLog,
)
from .reader import (
    View as View,
)
from .reader import (
    WindowRows as WindowRows,
)
from .reader import (
    match_labels as match_labels,
)
from .reader import (
    open_log as open_log,
)
from .reader import (
    require_endpoint as require_endpoint,
)
from .reader import (
    view_schema as view_schema,
)
from .reader import (
    view_tables as view_tables,
)
from .scan import (
    is_answered_by as is_answered_by,
)
from .scan import (
    microseconds_of as microseconds_of,
)
from .stats import (
    GONE_AFTER as GONE_AFTER,
)
from .stats import (
    LogStats as LogStats,
)
from .stats import (
    Watermark as Watermark,
)
from .stats import (
    expire_watermarks as expire_watermarks,
)
from .stats import (
    log_stats as log_stats,
)
from .stats import (
    read_watermarks as read_watermarks,
)
from .stats import (
    write_watermark as write_watermark,
)
from .storage import (
    DAY as DAY,
)
from .storage import (
    FAILURES as FAILURES,
)
from .storage import (
    HOUR as HOUR,
)
from .storage import (
    SKETCHES as SKETCHES,
)
from .storage import (
    Hour as Hour,
)
from .storage import (
    LogFile as LogFile,
)
from .storage import (
    LogLocation as LogLocation,
)
from .storage import (
    encode_parquet as encode_parquet,
)
from .storage import (
    list_days as list_days,
)
from .storage import (
    list_endpoints as list_endpoints,
)
from .storage import (
    list_files as list_files,
)
from .storage import (
    locate_log as locate_log,
)
from .storage import (
    wrap_log_errors as wrap_log_errors,
)
from .storage import (
    write_file as write_file,
)
from .tables import (
    Array as Array,
)
from .tables import (
    Sample as Sample,
)
from .tables import (
    combine_hashes as combine_hashes,
)
from .tables import (
    concat_tables as concat_tables,
)
from .tables import (
    hash_texts as hash_texts,
)
from .tables import (
    summarise_lists as summarise_lists,
)
from .windows import (
    EPOCH as EPOCH,
)
from .windows import (
    HOUR_US as HOUR_US,
)
from .windows import (
    TimeRange as TimeRange,
)
from .windows import (
    Window as Window,
)
from .windows import (
    microseconds as microseconds,
)
from .windows import (
    parse_duration as parse_duration,
)
from .windows import (
    parse_time_range as parse_time_range,
)
from .windows import (
    parse_window as parse_window,
)
from .windows import (
    window_at as window_at,
)

__all__: list[str]
