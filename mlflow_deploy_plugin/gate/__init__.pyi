from .policy import GatePolicy as GatePolicy
from .policy import Permissions as Permissions
from .policy import PolicyChoice as PolicyChoice
from .policy import choose_policy as choose_policy
from .policy import parse_policy as parse_policy
from .policy import policy_from_tags as policy_from_tags
from .policy import require_mlflow_artifact as require_mlflow_artifact
from .promotion import Promotion as Promotion
from .promotion import promote as promote
from .run import GateRun as GateRun
from .run import gate_version as gate_version
from .run import run_gate as run_gate
from .run import verdict_of_served as verdict_of_served
from .verdict import GateVerdict as GateVerdict
from .verdict import verdict_as_json as verdict_as_json

__all__: list[str]
