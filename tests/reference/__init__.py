"""Naive references: plain loops over cells, written from the definitions and independent of the library.

They are the tutorials' loops, mended: overlapping windows add, ties follow a stated rule,
one-sided pads work, and nothing writes into its arguments. Arrays are (N, C, *spatial); sums are in the array's dtype.
"""
