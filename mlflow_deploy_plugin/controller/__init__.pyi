from .leadership import (
    STORE_LEASE as STORE_LEASE,
)
from .leadership import (
    LeaseKeeper as LeaseKeeper,
)
from .leadership import (
    controller_name as controller_name,
)
from .leadership import (
    process_name as process_name,
)
from .locality import (
    rollouts_lease_name as rollouts_lease_name,
)
from .metrics import (
    start_metrics_server as start_metrics_server,
)
from .monitors.evaluation import (
    EvaluatedWindow as EvaluatedWindow,
)
from .monitors.evaluation import (
    judge_and_log as judge_and_log,
)
from .monitors.file_drift import (
    run_files as run_files,
)
from .monitors.manual_runs import (
    backfill as backfill,
)
from .monitors.manual_runs import (
    find_monitor as find_monitor,
)
from .monitors.manual_runs import (
    run_due as run_due,
)
from .monitors.manual_runs import (
    run_window as run_window,
)
from .monitors.overview import (
    MonitorOverview as MonitorOverview,
)
from .monitors.overview import (
    overviews as overviews,
)
from .retraining.plan import (
    retraining_summary as retraining_summary,
)
from .retraining.runner import (
    RetrainingRunner as RetrainingRunner,
)
from .retraining.trigger import (
    request_retraining as request_retraining,
)
from .retraining.trigger import (
    retrain_on_alarm as retrain_on_alarm,
)
from .rollouts.actions import (
    RolloutActions as RolloutActions,
)
from .rollouts.commands import (
    command_rollout as command_rollout,
)
from .rollouts.commands import (
    controller_status as controller_status,
)
from .rollouts.commands import (
    describe_rollout as describe_rollout,
)
from .rollouts.commands import (
    last_rollout as last_rollout,
)
from .rollouts.commands import (
    require_controller as require_controller,
)
from .rollouts.commands import (
    stall_reason as stall_reason,
)
from .rollouts.controller import (
    RolloutController as RolloutController,
)
from .rollouts.rollback import (
    rollback as rollback,
)
from .rollouts.rollback import (
    rollback_refusal as rollback_refusal,
)
from .rollouts.start import (
    RolloutRequest as RolloutRequest,
)
from .rollouts.start import (
    start_rollout as start_rollout,
)
from .rollouts.state_machine import (
    rollout_summary as rollout_summary,
)
from .service import (
    retraining_context as retraining_context,
)
from .service import (
    run_controller as run_controller,
)

__all__: list[str]
