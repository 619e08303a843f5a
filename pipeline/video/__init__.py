"""One video file: its container, its exact frames, which decoder returns them; and synthetic videos. Knows no manifest."""
