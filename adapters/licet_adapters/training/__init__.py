"""Training and checks on one machine, in the sandbox; and the tables they read."""
