"""Transports, the ways to reach a device: this machine, ssh, adb. Each is a module with one function that opens a device."""
