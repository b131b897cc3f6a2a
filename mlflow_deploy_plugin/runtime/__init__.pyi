from .artifact import COLUMN_TYPES as COLUMN_TYPES
from .artifact import FLAVOR as FLAVOR
from .artifact import INPUT_EXAMPLE as INPUT_EXAMPLE
from .artifact import MLMODEL as MLMODEL
from .artifact import PYTHON_FUNCTION as PYTHON_FUNCTION
from .artifact import Artifact as Artifact
from .artifact import Column as Column
from .artifact import Input as Input
from .artifact import Output as Output
from .artifact import Tensor as Tensor
from .artifact import combine_hashes as combine_hashes
from .artifact import hash_files as hash_files
from .artifact import load_yaml as load_yaml
from .artifact import read_artifact as read_artifact
from .artifact import read_mlmodel as read_mlmodel
from .explained import ExplainedFeature as ExplainedFeature
from .explained import explained_features as explained_features
from .model import OnnxModel as OnnxModel
from .pyfunc_artifact import UNNAMED_OUTPUT as UNNAMED_OUTPUT
from .pyfunc_artifact import pyfunc_schema as pyfunc_schema
from .pyfunc_artifact import read_served_artifact as read_served_artifact
from .schemas.schema import Schema as Schema
from .shadow_compare import compare_outputs as compare_outputs

__all__: list[str]
