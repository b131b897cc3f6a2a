from .backends import (
    DeploymentState as DeploymentState,
)
from .backends import (
    Observation as Observation,
)
from .backends.local import (
    state_dir as state_dir,
)
from .batch_prediction import (
    Predictor as Predictor,
)
from .batch_prediction import (
    RowBatch as RowBatch,
)
from .batch_prediction import (
    RowFile as RowFile,
)
from .batch_prediction import (
    model_predictor as model_predictor,
)
from .batch_prediction import (
    predict_batch as predict_batch,
)
from .batch_prediction import (
    read_rows as read_rows,
)
from .batch_prediction import (
    server_predictor as server_predictor,
)
from .config import (
    check_project as check_project,
)
from .description import (
    describe_endpoint as describe_endpoint,
)
from .description import (
    describe_endpoints as describe_endpoints,
)
from .description import (
    summarize_endpoints as summarize_endpoints,
)
from .endpoints import (
    AuditContext as AuditContext,
)
from .endpoints import (
    ObservedEndpoint as ObservedEndpoint,
)
from .feedback import (
    LabelTarget as LabelTarget,
)
from .feedback import (
    check_key_columns as check_key_columns,
)
from .feedback import (
    import_labels as import_labels,
)
from .feedback import (
    label_target as label_target,
)
from .lifecycle import (
    Deployment as Deployment,
)
from .lifecycle import (
    Deployments as Deployments,
)
from .lifecycle import (
    open_deployments as open_deployments,
)
from .lifecycle import (
    rollout_traffic_refusal as rollout_traffic_refusal,
)
from .scoring import (
    scoring_target as scoring_target,
)
from .server_metrics import (
    CountersByVersion as CountersByVersion,
)
from .server_metrics import (
    ServerMetrics as ServerMetrics,
)
from .server_metrics import (
    VersionCounters as VersionCounters,
)
from .server_metrics import (
    fetch_server_metrics as fetch_server_metrics,
)

__all__: list[str]
