"""What a worker does with a refund."""
