"""The contestants of benchmarks/peers.py, what they solve, and how they are measured."""
