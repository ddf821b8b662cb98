"""The checks of `refunds doctor` and the Prometheus metrics."""
