"""From a trained network to a file on a device, measured."""
