"""Redis: records, claims and indexes, and the only writer of them."""
