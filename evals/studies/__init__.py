"""Studies: benchmarks and recipes behind the figures in the docs. Not part of the wheel."""
