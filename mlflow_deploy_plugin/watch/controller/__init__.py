"""The process of the controller, which runs rollouts, monitors and retrainings over
time, under leases in the store.

A function that reads the store raises `StoreUnavailable` if the store does not answer,
and a query to MLflow raises `RegistryUnavailable`.
"""
