"""`python -m openenv.cli`."""

from openenv.cli import main

if __name__ == "__main__":
    main()
