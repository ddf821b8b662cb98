"""Nouns: what is asked for, what a record holds, what the provider answered. No clock, no I/O."""
