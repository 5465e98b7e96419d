"""The command line: parsing and formatting only. Nothing here imports torch before a command needs it, so that --help is quick."""

from edgecompress.cli.main import app, main

__all__ = ["app", "main"]
