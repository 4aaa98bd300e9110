"""Object stores: tenant data at rest, sealed."""
