"""What every folder stands on: descriptions of parts, labels, checks."""
