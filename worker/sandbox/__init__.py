"""Things to try the refund worker with; nothing outside this package depends on them."""
