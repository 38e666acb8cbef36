"""The report of the assignment."""
