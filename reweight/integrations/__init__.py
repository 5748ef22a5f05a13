"""reweight inside other training loops; each module needs its package, and its extra brings it."""
