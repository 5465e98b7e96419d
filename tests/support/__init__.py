"""Fixtures that several test modules share; tests/conftest.py loads them."""
