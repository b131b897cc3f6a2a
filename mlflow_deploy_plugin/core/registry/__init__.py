"""The registry: resolution of a model URI to one version, the version's files and tags,
and MLflow runs.

MLflow, spec, store and numpy are imported inside functions, because the command line
and the workers, which must start fast, import this folder. Each function raises
`RegistryUnavailable` if MLflow does not answer.
"""
