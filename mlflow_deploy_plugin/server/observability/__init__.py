"""The server's reports about itself: Prometheus metrics and OpenTelemetry traces."""
