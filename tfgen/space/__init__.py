"""What an architecture is: pure Python and NumPy."""
