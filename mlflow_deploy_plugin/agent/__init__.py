"""CONTROL: the process beside the workers. It follows the registry, fetches and verifies versions, ships the spool."""
