"""Benchmarks: every figure is a ratio to optax's nearest optimizer, measured in one process."""
