"""MLflow's server with the gate in its API, the audit trail and the console page."""
