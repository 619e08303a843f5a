"""How a command finds or starts a Ray cluster, and what a run needs against what the cluster has."""
