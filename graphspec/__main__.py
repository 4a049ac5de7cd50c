"""`python -m graphspec`: the command line."""

from graphspec.cli.main import main

if __name__ == "__main__":
    main()
