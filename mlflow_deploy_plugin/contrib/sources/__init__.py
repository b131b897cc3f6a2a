"""Read the requests and predictions that other servers log."""
