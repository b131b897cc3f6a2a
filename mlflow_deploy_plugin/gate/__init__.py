"""The gate: what a version has to prove before it is promoted."""
