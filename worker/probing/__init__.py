"""What small test refunds showed of a provider: the questions, the settings that follow, where the answers are kept.

Asking moves test money outside the records; `probe` does it. The rest only judges and keeps, and loads no provider
client. Whatever was not shown counts as no.
"""
