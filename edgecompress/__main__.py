"""`python -m edgecompress` is the command `edgecompress`."""

from edgecompress.cli import main

main()
