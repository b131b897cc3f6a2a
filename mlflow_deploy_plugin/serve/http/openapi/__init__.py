"""The OpenAPI 3.1 document, generated from the table of routes and the signatures of
the models.
"""
