"""The target URI and what `mlflow deployments help -t onnxserve` says about it."""

import textwrap

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.spec import field_reference

TARGET = "onnxserve"
_PLANNED = "Docker and Kubernetes are no targets of this version"
_WIDTH = 100

_ABOUT = """\
onnxserve serves MLflow models, as ONNX where they have that form, and follows the registry.

TARGET URI
  onnxserve    a server on this machine, which outlives the command that starts it

MODELS
  -m takes models:/NAME/Production (a stage, followed), models:/NAME@ALIAS (an alias, followed),
  models:/NAME/3, models:/m-ID, runs:/RUN_ID/PATH, s3://…, or a folder. Models of the flavors
  onnxserve (mlflow_deploy_plugin.log_model) and onnx are served as ONNX, all others as pyfunc, which runs
  their own Python code: for a stage or an alias, --flavor python_function allows that.

COMMANDS
  mlflow deployments create  -t onnxserve --name flights -m models:/flight-delay/Production -C server.workers=2
  mlflow deployments get     -t onnxserve --name flights
  mlflow deployments list    -t onnxserve
  mlflow deployments predict -t onnxserve --name flights -I rows.json
  mlflow deployments update  -t onnxserve --name flights -m models:/flight-delay/7 -C capture.fraction=0.1
  mlflow deployments delete  -t onnxserve --name flights
  onnxserve stop flights     stops the server and keeps the deployment
  onnxserve start flights    brings it back, on the same port

ENDPOINTS
  A deployment has a server of its own, an endpoint of the same name. --endpoint E on create adds the
  deployment as a variant to the endpoint E instead; it gets no traffic before its weight is set:
  mlflow deployments create -t onnxserve --name candidate --endpoint flights -m models:/flight-delay/8
  mlflow deployments update -t onnxserve --name candidate --endpoint flights -C variants.candidate.weight=10
  (`mlflow deployments create-endpoint` fails in MLflow itself; create with --endpoint makes the endpoint.)

INPUT OF predict -I FILE
  JSON as /invocations takes it: {"dataframe_split": {"columns": […], "data": [[…]]}},
  {"dataframe_records": [{…}]}, {"instances": […]}, {"inputs": …}; a bare list of records or rows, a mapping of
  columns, or what DataFrame.to_json writes. MLflow reads the file with pandas.read_json before onnxserve sees it,
  so CSV, Parquet and JSON lines fail there: `onnxserve predict -n NAME -i FILE` takes them.

CONFIGURATION (-C NAME=VALUE)
"""


def check_target(uri: str) -> None:
    """Raises InvalidConfig where `uri` names no backend of this version."""
    if uri.rstrip("/:") != TARGET:
        raise InvalidConfig(f"there is no target {uri!r}: it is `-t {TARGET}`, this machine; {_PLANNED}")


def help_text() -> str:
    """The whole help, the fields of `-C` from the spec itself."""
    lines = [_ABOUT]
    for name, kind, default, description in field_reference():
        lines.append(f"  {name} ({kind}{f', default {default}' if default else ''})")
        lines.append(textwrap.fill(description, _WIDTH, initial_indent="      ", subsequent_indent="      "))
    lines.append("\nNAME stands for the name of a deployment (variant) or of a monitor.")
    return "\n".join(lines)
