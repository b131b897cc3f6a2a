"""EndpointSpec: the description of an endpoint and its server.

An endpoint is a server, and a deployment is a variant in it. Each YAML document
describes an endpoint:

    apiVersion: onnxserve/v1
    name: flights
    variants:
      # an alias or stage is followed
      flights: {model: "models:/flight-delay@champion", weight: 100}
    server: {workers: 2, device: cpu, port: 8080}
    capture: {fraction: 1.0}
    monitors:
      daily: {kind: drift, every: 1d, min_rows: 200}

Field names, defaults, bounds and descriptions are defined only here. `-C
server.port=8123`, `onnxserve serve --help`, `mlflow deployments help -t onnxserve` and
the reference page of the docs are generated from them.
"""
