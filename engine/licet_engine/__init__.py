"""The engine: everything that decides and remembers, and its faces (HTTP API, CLI)."""

__version__ = "0.1.0"
