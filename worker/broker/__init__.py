"""Celery and kombu: the queues, the messages, and storage for malformed messages."""
