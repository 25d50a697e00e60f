"""Benchmarks: this machine beside the peers that are installed."""
