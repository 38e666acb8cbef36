"""Files: atomic writes, tensors, saved models."""
