from .alerts import Alert as Alert
from .alerts import Alerts as Alerts
from .alerts import Silences as Silences
from .audit import AuditEvent as AuditEvent
from .audit import current_actor as current_actor
from .audit import move_detail as move_detail
from .database import open_store as open_store
from .expiry import expire as expire
from .keys import ApiKeys as ApiKeys
from .leases import held_lease as held_lease
from .monitors import Monitors as Monitors
from .monitors import MonitorWindow as MonitorWindow
from .people import name_refusal as name_refusal
from .people import person_key as person_key
from .retrainings import Retraining as Retraining
from .retrainings import Retrainings as Retrainings
from .store import Endpoint as Endpoint
from .store import Rollout as Rollout
from .store import Store as Store
from .store import unknown_endpoint as unknown_endpoint
from .tables import Json as Json

__all__: list[str]
