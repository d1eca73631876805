"""One module per family of commands, named by `cli.tree`. Each parses flags, asks the API and prints."""
