"""What methods share: views of a step, losses, pseudo-labels and thresholds, contrast features, monitored quantities."""
