"""The HTTP server of `refunds serve`. It holds no API key and never calls the provider."""
