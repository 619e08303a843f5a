"""What the folders of many runs say, as numbers: comparisons, statistics, curves. Draws nothing; needs neither Ray nor torch."""
