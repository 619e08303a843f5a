"""What runs and studies left in their folders, as objects, and how their files are read."""
