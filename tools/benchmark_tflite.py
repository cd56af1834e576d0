"""Measures a .tflite on this host: the program `tfgen-benchmark` as a Bazel target."""

from absl import flags

from tfgen.deployment import benchmark_main

if __name__ == "__main__":
    flags.adopt_module_key_flags(benchmark_main)  # so that --help lists them
    benchmark_main.run()
