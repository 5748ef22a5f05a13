"""The tables and figures of the paper: what each trains, and how it is shown."""
