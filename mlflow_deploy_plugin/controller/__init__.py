"""What runs by itself over time, under a lease in the store: rollouts, monitors, retrainings."""
