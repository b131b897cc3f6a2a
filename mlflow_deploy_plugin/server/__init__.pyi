from . import (
    protocols as protocols,
)
from .assembly import (
    Cloud as Cloud,
)
from .assembly import (
    read_cloud as read_cloud,
)
from .capture.captured_model import (
    MASK_KEY as MASK_KEY,
)
from .capture.captured_model import (
    ColumnMask as ColumnMask,
)
from .capture.codec import (
    Feedback as Feedback,
)
from .capture.codec import (
    FeedbackFrame as FeedbackFrame,
)
from .capture.frames import (
    SHIPPED as SHIPPED,
)
from .capture.frames import (
    SUFFIX as SUFFIX,
)
from .capture.frames import (
    is_released as is_released,
)
from .capture.frames import (
    segments as segments,
)
from .capture.frames import (
    shipped_bytes as shipped_bytes,
)
from .capture.reader import (
    CapturedBatch as CapturedBatch,
)
from .capture.reader import (
    CapturedSegment as CapturedSegment,
)
from .capture.reader import (
    Utf8Array as Utf8Array,
)
from .capture.reader import (
    read_batches as read_batches,
)
from .device import (
    require_device as require_device,
)
from .inference.shadow_compare import (
    compare_outputs as compare_outputs,
)
from .models.explainer import (
    ExplainedFeature as ExplainedFeature,
)
from .models.explainer import (
    explained_features as explained_features,
)
from .models.explainer import (
    explained_names as explained_names,
)
from .models.explainer import (
    explained_numbers as explained_numbers,
)
from .models.explainer import (
    explained_outputs as explained_outputs,
)
from .models.loading import (
    INPUT_EXAMPLE as INPUT_EXAMPLE,
)
from .models.model_control import (
    MAX_COMMAND_AGE_SECONDS as MAX_COMMAND_AGE_SECONDS,
)
from .models.model_control import (
    MAX_COMMAND_BYTES as MAX_COMMAND_BYTES,
)
from .models.model_control import (
    MAX_WAITING as MAX_WAITING,
)
from .models.model_control import (
    command_answer as command_answer,
)
from .models.model_control import (
    command_files as command_files,
)
from .models.side_process import (
    FAILED_MESSAGE as FAILED_MESSAGE,
)
from .models.side_process import (
    READY_MESSAGE as READY_MESSAGE,
)
from .models.side_process import (
    SideMessage as SideMessage,
)
from .models.side_process import (
    receive_message as receive_message,
)
from .models.side_process import (
    send_message as send_message,
)
from .observability.exposition import (
    CaptureCounters as CaptureCounters,
)
from .observability.exposition import (
    read_capture_counters as read_capture_counters,
)
from .observability.exposition import (
    saved_capture_counters as saved_capture_counters,
)
from .protocols.arrow import (
    PARQUET as PARQUET,
)
from .protocols.content import (
    CSV as CSV,
)
from .protocols.content import (
    JSON as JSON,
)
from .protocols.content import (
    load_json as load_json,
)
from .supervisor import (
    claim_state_dir as claim_state_dir,
)
from .supervisor import (
    supervise as supervise,
)

__all__: list[str]
