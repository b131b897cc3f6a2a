from .alerts.record import announce as announce
from .alerts.record import record_failure as record_failure
from .alerts.record import record_result as record_result
from .alerts.record import resolve_orphaned as resolve_orphaned
from .alerts.send import GROUPING_DELAY as GROUPING_DELAY
from .alerts.send import send_due as send_due
from .drift.references.rows import ReferenceRows as ReferenceRows
from .drift.references.rows import dataset_columns as dataset_columns
from .drift.references.rows import load_datasets as load_datasets
from .kinds.performance import affordable_rows as affordable_rows
from .result import ALARMS as ALARMS
from .result import UNDECIDED as UNDECIDED
from .result import Engine as Engine
from .result import MonitorResult as MonitorResult
from .result import WindowRequest as WindowRequest
from .result import mark_of as mark_of
from .result import to_document as to_document
from .run import run_monitor as run_monitor

__all__: list[str]
