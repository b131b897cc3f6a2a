"""The transport-neutral request path: data plane, limits, response cache and shadows."""
