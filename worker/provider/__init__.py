"""HTTP access to the payment provider: single calls, and attempts."""
