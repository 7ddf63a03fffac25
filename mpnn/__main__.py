"""`python -m mpnn`: the command line."""

from mpnn.cli import main

if __name__ == "__main__":
    main()
