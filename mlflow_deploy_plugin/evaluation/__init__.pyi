from .agreement import check_outputs as check_outputs
from .agreement import compare_with_base as compare_with_base
from .curves import require_matplotlib as require_matplotlib
from .curves import robustness as robustness
from .dataset import NamedArrays as NamedArrays
from .dataset import known_rows as known_rows
from .dataset import load_dataset as load_dataset
from .dataset import reference_rows as reference_rows
from .dataset import take_rows as take_rows
from .explanation import explain as explain
from .model import LoadedOnnx as LoadedOnnx
from .model import downloaded_version as downloaded_version
from .names import MetricName as MetricName

__all__: list[str]
