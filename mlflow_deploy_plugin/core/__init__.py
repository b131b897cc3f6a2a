"""CORE: what every part uses: errors, settings, the spec of an endpoint, the state folder, the registry and the
store."""
