"""The worker process: its loop, its supervisor, its logs."""
