"""Serve the folders, objects and clients of MLServer and of KServe's own servers."""
