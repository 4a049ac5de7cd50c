"""The command line; a command imports what it needs when it runs. Text for people goes to stderr, data to stdout."""
