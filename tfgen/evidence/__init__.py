"""What is known about a space: records, and the surrogate fitted to them."""
