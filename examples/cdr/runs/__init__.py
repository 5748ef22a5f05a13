"""Trainings as jobs: processes, folders of results, logs and the grid of finished trainings."""
