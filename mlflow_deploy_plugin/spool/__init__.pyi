from .captured_model import MASK_KEY as MASK_KEY
from .captured_model import ColumnMask as ColumnMask
from .codec import Feedback as Feedback
from .frames import segments as segments
from .frames import shipped_bytes as shipped_bytes

__all__: list[str]
