"""SHIP: deployments and their targets, manifests, images, batch prediction, and the
resources that a load needs.
"""
