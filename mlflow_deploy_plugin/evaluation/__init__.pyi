from .dataset import LabelledRows as LabelledRows
from .dataset import NamedArrays as NamedArrays
from .dataset import cast_to_signature as cast_to_signature
from .dataset import count_rows as count_rows
from .dataset import load_dataset as load_dataset
from .dataset import reference_rows as reference_rows
from .dataset import sample_positions as sample_positions
from .dataset import take_rows as take_rows
from .disturbances import with_missing as with_missing
from .disturbances import with_noise as with_noise
from .disturbances import with_out_of_range as with_out_of_range
from .metrics import HIGHER_IS_BETTER as HIGHER_IS_BETTER
from .metrics import RELATIVE_METRICS as RELATIVE_METRICS
from .metrics import default_metric as default_metric
from .metrics import metric_loss as metric_loss
from .metrics import paired_bootstrap as paired_bootstrap
from .metrics import weighted_metric as weighted_metric
from .model import LoadedModel as LoadedModel
from .model import ModelPredictions as ModelPredictions
from .model import downloaded_version as downloaded_version
from .model import load_version as load_version
from .names import REFERENCE as REFERENCE
from .names import MetricName as MetricName

__all__: list[str]
