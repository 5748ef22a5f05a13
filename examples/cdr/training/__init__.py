"""Options, variants and the training loop of one recommendation model."""
