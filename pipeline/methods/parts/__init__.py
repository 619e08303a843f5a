"""What methods share: views of a step, losses, pseudo-labels and thresholds, contrast features, what is watched."""
