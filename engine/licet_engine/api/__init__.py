"""The HTTP API: thin. It parses, calls and renders; every rule stands elsewhere."""
