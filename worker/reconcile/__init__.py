"""Compares the records with the provider's own books, and sums them up by month.

`settled` finds what settled in a window of time, and `totals` adds it up. `export` reads the
provider's file as a `mapping` says, `books` holds both sides in a temporary file, and `comparing`
puts each refund into a class.
"""
