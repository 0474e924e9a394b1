"""Text to tokens, tokens to examples, examples to batches."""
