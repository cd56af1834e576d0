"""From a Keras network to a trained one."""
