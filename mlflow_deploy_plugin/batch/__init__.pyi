from .run import BatchPlan as BatchPlan
from .run import run_batch as run_batch
from .spark import predict_frame as predict_frame

__all__: list[str]
