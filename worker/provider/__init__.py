"""The provider over HTTP: one call, one attempt."""
