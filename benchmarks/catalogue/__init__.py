"""What the tables of exactness and operations are about; the tests try the same."""
