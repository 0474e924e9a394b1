"""What a thought holds."""
