"""Model registries: versions of models, inspected, signed and sealed."""
