"""The course assignment: its studies and its report."""
