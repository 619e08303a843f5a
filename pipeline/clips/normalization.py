"""How pixels become the students' numbers."""

MEAN, STD = 0.45, 0.225
"""Of all channels, as SlowFast's; what lies outside the window and erased squares take the mean, 0 after normalization."""
