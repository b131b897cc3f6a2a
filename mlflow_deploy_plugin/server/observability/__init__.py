"""What a server reports about itself: Prometheus metrics and OpenTelemetry traces."""
