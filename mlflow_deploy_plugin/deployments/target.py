"""The target URI `onnxserve`, and the text of `mlflow deployments help -t onnxserve`."""

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
  models:/NAME/tag:KEY=VALUE (the newest version with this tag, followed), models:/NAME/3, models:/m-ID,
  runs:/RUN_ID/PATH, s3://…, or a folder. Models of the flavors onnxserve (mlflow_deploy_plugin.log_model)
  and onnx are served as ONNX, all others as pyfunc, which runs their own Python code: for what is followed,
  --flavor python_function allows that. --flavor onnx refuses a model without that form.

COMMANDS
  mlflow deployments create  -t onnxserve --name flights -m models:/flight-delay/Production -C server.workers=2
  mlflow deployments get     -t onnxserve --name flights
  mlflow deployments list    -t onnxserve
  mlflow deployments predict -t onnxserve --name flights -I rows.json
  mlflow deployments explain -t onnxserve --name flights -I rows.json
  mlflow deployments update  -t onnxserve --name flights -m models:/flight-delay/7 -C capture.fraction=0.1
  mlflow deployments delete  -t onnxserve --name flights
  mlflow deployments run-local -t onnxserve --name flights -m models:/flight-delay/7
                             serves in the foreground until Ctrl-C, and keeps nothing
  onnxserve list             shows all of them in one table: model, version, state, URL, monitors
  onnxserve stop flights     stops the server and keeps the deployment
  onnxserve start flights    brings it back, on the same port
  onnxserve predict -n flights -i rows.csv -o predictions.csv

ENDPOINTS
  A deployment has a server of its own, an endpoint of the same name, which goes when it is deleted. With
  --endpoint E it is a variant in the endpoint E instead, which is made where it is not there, and stays:
  onnxserve endpoint create E
  mlflow deployments create -t onnxserve --endpoint E --name champion -m models:/flight-delay/7
  mlflow deployments create -t onnxserve --endpoint E --name challenger -m models:/flight-delay/8
  onnxserve endpoint traffic E champion=95 challenger=5
  mlflow deployments predict -t onnxserve --endpoint E -I rows.json
  The first deployment of an endpoint gets all of its traffic, the others none before they are given a share. All
  of this is changed while the server answers; only a change of server.… restarts it.
  list-endpoints, get-endpoint, update-endpoint and delete-endpoint of `mlflow deployments` work too; create-endpoint
  fails in MLflow itself.

INPUT OF predict -I FILE
  JSON as /invocations takes it: {"dataframe_split": {"columns": […], "data": [[…]]}},
  {"dataframe_records": [{…}]}, {"instances": […]}, {"inputs": …}; a bare list of records or rows, a mapping of
  columns, or what DataFrame.to_json writes. MLflow reads the file with pandas.read_json before onnxserve sees it,
  so CSV, Parquet and JSON lines fail there: `onnxserve predict -n NAME -i FILE` takes them.

CONFIGURATION (-C NAME=VALUE; -C NAME= brings the default back)
  traffic.NAME (int)
      The weight of the deployment NAME; in Python also {"traffic": {"champion": 95, "challenger": 5}}, which is all of
      the traffic. The same as variants.NAME.weight.
"""


def check_target(uri: str) -> None:
    """Raise InvalidConfig if `uri` names no backend of this version."""
    if uri.rstrip("/:") != TARGET:
        raise InvalidConfig(f"there is no target {uri!r}: it is `-t {TARGET}`, this machine; {_PLANNED}")


def target_help() -> str:
    """Return the help of the target; the fields of `-C` come from the spec itself."""
    lines = [_ABOUT]
    for name, kind, default, description in field_reference():
        lines.append(f"  {name} ({kind}{f', default {default}' if default else ''})")
        lines.append(textwrap.fill(description, _WIDTH, initial_indent="      ", subsequent_indent="      "))
    lines.append("\nNAME stands for the name of a deployment (variant) or of a monitor.")
    return "\n".join(lines)
