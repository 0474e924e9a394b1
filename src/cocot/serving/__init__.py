"""Models that leave cocot: export and the harnesses of others."""
