from .process import RequestRefused as RequestRefused
from .process import one_line as one_line
from .scorer import Scorer as Scorer

__all__: list[str]
