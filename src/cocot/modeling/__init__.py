"""Models that think: the recurrence, a class for any Hugging Face model, generation, loading."""
