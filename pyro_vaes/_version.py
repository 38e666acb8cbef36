"""The version, alone in a file so that packaging can read it without importing torch."""

from __future__ import annotations

__version__ = "0.1.0"
