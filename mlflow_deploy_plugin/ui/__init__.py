"""MLflow's server, extended by the gate in its API, the audit trail and the console
page.
"""
