"""The constants by which pixel values 0..1 are normalized."""

MEAN, STD = 0.45, 0.225
"""Mean and standard deviation of every channel, as SlowFast has them. Erased squares, and what lies outside the decoded square,
take the mean, which normalization makes 0."""
