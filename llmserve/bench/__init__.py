"""Benchmarks: what `scripts/bench` runs. Figures are ratios taken in one run, interleaved."""
