"""What the folders of many runs say: comparisons, statistics, curves. Draws nothing, needs neither Ray nor torch."""
