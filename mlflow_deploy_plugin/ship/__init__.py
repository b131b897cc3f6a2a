"""SHIP: deployments and their targets, manifests, images and batch prediction."""
