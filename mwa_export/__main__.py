"""Run the command line with `python -m mwa_export`."""

from mwa_export.cli.main import main

if __name__ == "__main__":
    main()
