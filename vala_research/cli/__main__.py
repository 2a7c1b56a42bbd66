"""`python -m vala_research.cli` is `vala`."""

from vala_research.cli.app import main

if __name__ == "__main__":
    main()
