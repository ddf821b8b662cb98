"""Data types: refund requests, refund records, provider answers and decisions. No clock, no I/O."""
