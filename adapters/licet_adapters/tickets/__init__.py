"""Change tickets."""
