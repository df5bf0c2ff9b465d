"""Side-by-side benchmarks; each prints its raw rows and ends with the ratios. Run as `python -m bench.<name>`."""
