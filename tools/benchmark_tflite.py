"""Measures a .tflite on this host: the program `tfgen-benchmark` as a Bazel target."""

from tfgen.deployment import benchmark_main

if __name__ == "__main__":
    benchmark_main.run()
