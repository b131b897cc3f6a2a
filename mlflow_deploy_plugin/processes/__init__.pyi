from .child import Child as Child
from .child import backoff_seconds as backoff_seconds
from .child import die_with_parent as die_with_parent
from .child import end_on_signals as end_on_signals
from .child import exit_reason as exit_reason
from .child import read_log_tail as read_log_tail
from .child import signal_process as signal_process
from .worker import ProcessCrashed as ProcessCrashed
from .worker import Worker as Worker
from .worker import WorkerPool as WorkerPool

__all__: list[str]
