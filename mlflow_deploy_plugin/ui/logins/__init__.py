"""Login adapters: who sends a request to MLflow's server, and what the caller may do
with a registered model.
"""
