"""The cells of a comparison on one or many machines, by Ray."""

from experiments.launch.ray_grid import RayResources, check_ray, run_on_ray

__all__ = ["RayResources", "check_ray", "run_on_ray"]
