"""`python -m qmpsnap` is the command line."""

from qmpsnap.cli.main import main

if __name__ == "__main__":
    main()
