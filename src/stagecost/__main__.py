"""`python -m stagecost` is the command `stagecost`."""

from stagecost.cli.main import main

if __name__ == "__main__":
    main()
