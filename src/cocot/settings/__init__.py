"""Settings from plain data: names, types and bounds are checked, and nothing is imported or run."""
