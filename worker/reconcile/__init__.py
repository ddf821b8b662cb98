"""Sums up the records by month: `settled` finds what settled in a window, `totals` adds it up."""
