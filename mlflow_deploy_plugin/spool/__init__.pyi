from .captured_model import MASK_KEY as MASK_KEY
from .captured_model import STREAM_OUTPUT as STREAM_OUTPUT
from .captured_model import CapturedModel as CapturedModel
from .captured_model import ColumnMask as ColumnMask
from .captured_model import Value as Value
from .captured_model import exclude_columns as exclude_columns
from .codec import Feedback as Feedback
from .codec import FeedbackFrame as FeedbackFrame
from .codec import RequestRecord as RequestRecord
from .codec import as_one_row as as_one_row
from .frames import SHIPPED as SHIPPED
from .frames import SUFFIX as SUFFIX
from .frames import is_released as is_released
from .frames import segments as segments
from .frames import shipped_bytes as shipped_bytes
from .reader import CapturedBatch as CapturedBatch
from .reader import CapturedSegment as CapturedSegment
from .reader import Utf8Array as Utf8Array
from .reader import read_batches as read_batches
from .writer import CaptureWriter as CaptureWriter

__all__: list[str]
