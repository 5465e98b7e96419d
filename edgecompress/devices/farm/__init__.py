"""Many devices that share one queue of jobs: each takes the next job when it is free and cool, and another does what one has lost."""

from edgecompress.devices.farm.pool import bench_pool, evaluate_pool, is_pool
from edgecompress.devices.farm.run import FarmError, run_farm
from edgecompress.devices.farm.schedule import FarmDevice, FarmJob, Schedule

__all__ = ["FarmDevice", "FarmError", "FarmJob", "Schedule", "bench_pool", "evaluate_pool", "is_pool", "run_farm"]
