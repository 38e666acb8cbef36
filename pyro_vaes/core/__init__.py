"""Shared by all folders: descriptions of parts, labels, checks."""
