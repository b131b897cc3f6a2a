"""The guard of MLflow's registry: it reads, decides and records each change."""
