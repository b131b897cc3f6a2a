"""The store: endpoints, audit events, rollouts, monitors, alerts, retrainings and
leases, in an SQL database.
"""
