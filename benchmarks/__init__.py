"""Measurements of the library, each a script of its own."""
