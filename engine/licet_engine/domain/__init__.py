"""What things are: pure values and rules, with no I/O and no framework."""
