"""Published benchmarks, read from a folder of yours: one file each, base.py is the contract."""
