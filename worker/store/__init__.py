"""Redis storage: the only writer of records, claims and indexes."""
