from .commands import MAX_WAITING as MAX_WAITING
from .commands import command_files as command_files
from .history import Span as Span
from .history import read_history as read_history
from .metric_files import remove_metrics as remove_metrics
from .models import AgentState as AgentState
from .models import Command as Command
from .models import KeyEntry as KeyEntry
from .models import RefusedVersion as RefusedVersion
from .models import Scope as Scope
from .models import ServerState as ServerState
from .models import ValidKeys as ValidKeys
from .models import Wanted as Wanted
from .models import WantedEndpoint as WantedEndpoint
from .models import WantedVariant as WantedVariant
from .models import WorkerState as WorkerState

__all__: list[str]
