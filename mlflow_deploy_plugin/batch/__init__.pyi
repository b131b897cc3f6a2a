from .part import OnError as OnError
from .run import BatchPlan as BatchPlan
from .run import BatchProgress as BatchProgress
from .run import Engine as Engine
from .run import run_batch as run_batch
from .spark import predict_frame as predict_frame
from .table_model import body_predictor as body_predictor

__all__: list[str]
