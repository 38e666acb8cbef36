"""The studies of the assignment, one module each: grid, figures, findings."""
