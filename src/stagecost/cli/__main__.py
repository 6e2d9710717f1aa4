"""`python -m stagecost.cli` is the console script `stagecost`."""

from stagecost.cli.main import main

if __name__ == "__main__":
    main()
