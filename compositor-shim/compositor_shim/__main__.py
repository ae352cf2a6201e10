"""``python -m compositor_shim``."""

from compositor_shim.cli import main

if __name__ == "__main__":
    main()
