"""`python -m kleinbild` is the command `kleinbild`."""

from kleinbild.cli.main import main

if __name__ == "__main__":
    main()
