"""The controller runs rollouts, monitors and retrainings over time, under leases in the store."""
