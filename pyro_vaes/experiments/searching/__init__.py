"""A search over options."""
