"""The command line, a file a command; it draws what `fusion_ray.api` returns."""
