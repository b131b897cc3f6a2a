"""A linear regression of house prices from a CSV file or synthetic rows."""
