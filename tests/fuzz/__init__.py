"""Files that are damaged or made to do harm, in any number: see ``python -m tests.fuzz``."""
