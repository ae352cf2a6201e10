"""``python -m waylend``."""

from waylend.cli import main

if __name__ == "__main__":
    main()
