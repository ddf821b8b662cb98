"""Probes a provider with small test refunds.

The questions, the findings, and the settings that they support.

Only `probe` sends refunds, which move test money outside the records. The other modules judge and
store findings, and load no provider client. What was not shown counts as no.
"""
