"""What a person or Prometheus sees: `refunds doctor` and the metrics."""
