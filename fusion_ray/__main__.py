"""`python -m fusion_ray`."""

from fusion_ray.cli.app import main

if __name__ == "__main__":
    main()
