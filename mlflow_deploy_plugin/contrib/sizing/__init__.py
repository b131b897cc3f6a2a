"""The resources that an endpoint needs for a load, measured on this machine."""
