"""The worker's engine: takes refunds from a message to their result."""
