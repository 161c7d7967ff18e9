"""Ours beside a baseline, timed in turn in one process on one machine: `python -m benchmarks`."""
