"""Run artifacts on a device: the runner protocol, one attempt of it, its files there, and programs of third parties."""
