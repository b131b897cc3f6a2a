from .approvals import request_is_over as request_is_over
from .policy import choose_policy as choose_policy
from .promotion import promote as promote
from .run import run_gate as run_gate
from .run import verdict_of_served as verdict_of_served

__all__: list[str]
