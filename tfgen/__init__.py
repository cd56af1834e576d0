"""tfgen: from a budget to a measured .tflite.

Importing the package imports nothing heavy: TensorFlow is loaded by the stages that train and export.
"""

__version__ = "0.1.0"
