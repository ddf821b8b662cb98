"""Celery and kombu: queues, messages, and what is kept of a message that cannot be understood."""
