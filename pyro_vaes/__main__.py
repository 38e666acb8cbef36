"""``python -m pyro_vaes`` is ``pyro-vaes``."""

from pyro_vaes.cli import main

if __name__ == "__main__":
    main()
