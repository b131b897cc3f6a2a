from .alerts.send import send_due as send_due
from .alerts.send import send_until_accepted as send_until_accepted
from .result import Engine as Engine
from .result import WindowRequest as WindowRequest

__all__: list[str]
