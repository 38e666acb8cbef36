"""The command line."""

from pyro_vaes.cli.app import main

__all__ = ["main"]
