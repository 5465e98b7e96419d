"""Whose fault an error is, in which line, and what helps against it."""
