"""Reads the folders of many runs and compares them: statistics, curves, importance of knobs. Needs neither Ray nor torch."""
