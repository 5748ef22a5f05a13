"""Tables, plots, documents and pages of results."""
