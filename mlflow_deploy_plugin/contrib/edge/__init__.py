"""Exports for machines without onnxserve: packages, bundles, phones and desktops."""
