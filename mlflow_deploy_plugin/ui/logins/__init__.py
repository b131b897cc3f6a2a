"""Login adapters: who sends a request to MLflow's server, and what the caller may do with a registered model.

An adapter answers for one app of the entry point group `mlflow.app`. Its name in the table, or in the entry point group
`onnxserve.logins` of another distribution, is the name of that app.
"""
