"""Where deployments run. A backend is a module with `realise`, `observe`, `stop` and `remove`."""
