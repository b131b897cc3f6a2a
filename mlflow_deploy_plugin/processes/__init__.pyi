from .child import Child as Child
from .child import Crashes as Crashes
from .child import SupervisedChild as SupervisedChild
from .child import SupervisedChildren as SupervisedChildren
from .child import adopt_orphans as adopt_orphans
from .child import awaiting_signals as awaiting_signals
from .child import backoff_seconds as backoff_seconds
from .child import die_with_parent as die_with_parent
from .child import end_on_signals as end_on_signals
from .child import exit_reason as exit_reason
from .child import read_log_tail as read_log_tail
from .child import requests_of_parent as requests_of_parent
from .child import run_to_end as run_to_end
from .child import signal_group as signal_group
from .child import signal_process as signal_process
from .spark import NO_CONNECT as NO_CONNECT
from .spark import spark_context as spark_context
from .spark import spark_session as spark_session
from .worker import ProcessCrashed as ProcessCrashed
from .worker import ProcessEnded as ProcessEnded
from .worker import Worker as Worker
from .worker import WorkerPool as WorkerPool

__all__: list[str]
