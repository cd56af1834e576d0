"""What an architecture costs, and what a user allows: pure Python and NumPy."""
