"""Reads and writes what a run or a study leaves in its folder, and its copy on object storage. It is judged in analysis."""
