"""Variational autoencoders as plain Pyro models and guides.

The names stand in ``__init__.pyi`` and are imported when they are first used (PEP 562), so that
``import pyro_vaes`` costs nothing.
"""

import lazy_loader

from pyro_vaes._version import __version__ as __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
