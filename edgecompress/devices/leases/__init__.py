"""Leases: one process at a time measures on a device."""
