from . import arrow as arrow
from . import feedback as feedback
from . import mlflow as mlflow

__all__: list[str]
