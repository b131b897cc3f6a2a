"""A search for the best model of the delayed flights: families and parameters by Optuna, the winner gated."""
