"""The server's own endpoints: health, metrics, adapters, tokens."""
