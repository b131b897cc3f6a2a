"""Models and steps of libraries that few models use, and PMML files."""
