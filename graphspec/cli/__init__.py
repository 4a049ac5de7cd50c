"""The command line: `app` lists the commands, `main` runs them, one file holds each group of commands.

Commands import what they need when they run, so that help is fast. Text for people goes to stderr, data to stdout.
"""
