"""One run: its settings, its stages, its folder."""
