"""The spool: captured requests and feedback as bytes on disk, written by the workers and read by the agent."""
