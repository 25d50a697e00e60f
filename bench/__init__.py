"""Benchmarks: this machine beside the peers that are installed. `cnnlayers bench` runs them."""
