"""Benchmarks: speeds as ratios measured within one run. None of them is a test."""
