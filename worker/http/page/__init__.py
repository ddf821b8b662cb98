"""The part `page`: the operator's page, rendered on the server."""
