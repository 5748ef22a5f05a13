"""Trainings of frameworks that two processes make together, and one process with all samples."""
