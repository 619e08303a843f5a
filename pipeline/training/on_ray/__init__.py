"""A run on a cluster: the rim between Ray Train and the loop."""
