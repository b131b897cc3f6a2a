"""The spec of an endpoint with three variants."""

from mlflow_deploy_plugin.core.spec.document import load_specs

FLIGHTS = """
apiVersion: onnxserve/v1
name: flights
variants:
  champion: {model: "models:/flight-delay/Production", weight: 95}
  challenger: {model: "models:/flight-delay@challenger", weight: 5}
  candidate: {model: "models:/flight-delay/7", shadow: true}
server: {workers: 2, device: cpu, port: 8080}
capture: {fraction: 0.5}
monitors:
  daily: {kind: drift, every: 1d, min_rows: 500}
"""


def flights():
    (spec,) = load_specs(FLIGHTS)
    return spec
