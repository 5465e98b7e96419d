"""What layers cost on a device, measured: tables that are kept, filled where they lack something, and read by the planner."""
