"""Latency of single layers on a device: tables on disk, measured where entries are missing, and read by the planner."""
