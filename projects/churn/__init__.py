"""A random forest that says which customers leave, on a CSV file or on synthetic rows."""
