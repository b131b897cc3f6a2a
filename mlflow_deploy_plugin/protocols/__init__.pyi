from . import arrow as arrow
from . import feedback as feedback
from . import mlflow as mlflow
from . import v2_tensors as v2_tensors
from .content import CSV as CSV
from .content import JSON as JSON
from .content import load_json as load_json
from .side_messages import SideMessage as SideMessage
from .side_messages import receive_message as receive_message
from .side_messages import send_message as send_message

__all__: list[str]
