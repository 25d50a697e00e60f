"""Conformance: cases that others published, run through the library."""
