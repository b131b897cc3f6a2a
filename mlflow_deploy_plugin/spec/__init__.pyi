from .document import apply_config as apply_config
from .document import dump_spec as dump_spec
from .document import empty_endpoint as empty_endpoint
from .document import load_specs as load_specs
from .document import new_endpoint as new_endpoint
from .document import spec_document as spec_document
from .monitors import KINDS_WITH_REFERENCE as KINDS_WITH_REFERENCE
from .monitors import REGRESSION as REGRESSION
from .monitors import MonitorKind as MonitorKind
from .monitors import MonitorSpec as MonitorSpec
from .parts import CaptureSpec as CaptureSpec
from .parts import Device as Device
from .parts import EndpointSpec as EndpointSpec
from .parts import ServerSpec as ServerSpec
from .parts import StickySpec as StickySpec
from .parts import VariantSpec as VariantSpec
from .types import bin_period as bin_period
from .types import duration_seconds as duration_seconds
from .types import is_loopback as is_loopback
from .types import load_time_zone as load_time_zone
from .types import parse_duration as parse_duration
from .types import parse_time as parse_time
from .types import reachable_url as reachable_url

__all__: list[str]
