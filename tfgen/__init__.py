"""tfgen: from a budget to a measured .tflite.

Importing the package imports nothing heavy: only the stages that train and export load TensorFlow.
"""

__version__ = "0.1.0"
