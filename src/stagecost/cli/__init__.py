"""The command line: parsing, views of typed results, and one line for whatever goes wrong."""
