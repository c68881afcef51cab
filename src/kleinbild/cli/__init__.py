"""The command `kleinbild`. `main` is the entry point and turns errors into exit codes; `app` lists the commands."""
