from .alerts import Alert as Alert
from .alerts import Alerts as Alerts
from .alerts import Silence as Silence
from .alerts import Silences as Silences
from .audit import AuditEvent as AuditEvent
from .audit import current_actor as current_actor
from .audit import move_detail as move_detail
from .database import open_store as open_store
from .database import utc_now as utc_now
from .keys import ApiKey as ApiKey
from .keys import ApiKeys as ApiKeys
from .leases import Lease as Lease
from .leases import LeaseKeeper as LeaseKeeper
from .monitors import MonitorKey as MonitorKey
from .monitors import MonitorNote as MonitorNote
from .monitors import Monitors as Monitors
from .monitors import MonitorState as MonitorState
from .monitors import MonitorWindow as MonitorWindow
from .monitors import read_counts as read_counts
from .retrainings import Retraining as Retraining
from .retrainings import Retrainings as Retrainings
from .retrainings import WaitsFor as WaitsFor
from .store import Endpoint as Endpoint
from .store import Rollout as Rollout
from .store import Store as Store
from .store import unknown_endpoint as unknown_endpoint

__all__: list[str]
