"""The compiled signature of a model: it converts rows and columns of a request into the
arrays of the graph.
"""
