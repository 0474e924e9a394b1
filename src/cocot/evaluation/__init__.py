"""How often answers are right, and whether the thoughts matter for it."""
