"""One run from its start to its accuracies, and a saved run opened again. What concerns many runs is in studies."""
