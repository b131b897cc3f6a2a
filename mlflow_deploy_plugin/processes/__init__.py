"""Child processes: started in a group of their own, ended as a whole, and described in words when they have ended.

`child.py` has both ends of a parent and its child, and the children of a process that reaps everything in one place;
`worker.py` calls functions in a process of its own.
"""

from mlflow_deploy_plugin.processes.child import (
    Child,
    SupervisedChild,
    SupervisedChildren,
    adopt_orphans,
    die_with_parent,
    exit_reason,
    read_log_tail,
    requests_of_parent,
    signal_group,
    signal_process,
    watched_signals,
)
from mlflow_deploy_plugin.processes.worker import ProcessCrashed, ProcessEnded, Worker, WorkerPool

__all__ = [
    "Child",
    "ProcessCrashed",
    "ProcessEnded",
    "SupervisedChild",
    "SupervisedChildren",
    "Worker",
    "WorkerPool",
    "adopt_orphans",
    "die_with_parent",
    "exit_reason",
    "read_log_tail",
    "requests_of_parent",
    "signal_group",
    "signal_process",
    "watched_signals",
]
