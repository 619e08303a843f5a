"""Reading one video file: its container, its exact frames and the decoder to use; and synthetic videos. Knows no manifest."""
