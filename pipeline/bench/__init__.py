"""Speed against a floor that is measured in the same command, one file for each benchmark. Only jobs.bench imports it."""
