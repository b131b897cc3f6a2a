"""A linear regression of house prices, on a CSV file or on synthetic rows."""
