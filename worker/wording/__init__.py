"""The words for people about refunds and batches."""
