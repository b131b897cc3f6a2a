from . import arrow as arrow
from . import feedback as feedback
from . import mlflow as mlflow
from . import v2_tensors as v2_tensors

__all__: list[str]
