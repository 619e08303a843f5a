"""Benchmarks, one file each, which compare a speed with a floor measured in the same command. Only jobs.bench imports them."""
