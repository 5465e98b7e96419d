"""Many devices, one queue: each takes the next job when it is free and cool; what a device loses, another one does."""

from edgecompress.devices.farm.pool import bench_pool, evaluate_pool, is_pool
from edgecompress.devices.farm.run import FarmError, run_farm
from edgecompress.devices.farm.schedule import Lane, Schedule, Task

__all__ = ["FarmError", "Lane", "Schedule", "Task", "bench_pool", "evaluate_pool", "is_pool", "run_farm"]
