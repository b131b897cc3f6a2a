"""CORE: the modules that all parts use: errors, settings, specs, the state folder, the
registry and the store.
"""
