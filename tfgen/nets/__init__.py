"""From an architecture to Keras layers."""
