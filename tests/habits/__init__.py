"""Inputs made of habits of users' code, by kind; ``python -m tests.habits`` prints their table."""
