"""``python -m pyro_vaes`` is ``pyro-vaes``."""

from __future__ import annotations

from pyro_vaes.cli.app import main

if __name__ == "__main__":
    main()
