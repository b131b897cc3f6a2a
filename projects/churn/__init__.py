"""A random forest that predicts which customers leave, from a CSV file or synthetic
rows.
"""
