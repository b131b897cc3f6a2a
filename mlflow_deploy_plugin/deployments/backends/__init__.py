"""Where deployments run. A backend is a module with `apply`, `observe`, `stop` and `remove`."""
