"""Refunds: accepted once, moved at most once, never lost, never guessed."""
