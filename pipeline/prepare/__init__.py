"""From videos in folders and lists to the two files that a run starts from: manifest and label subset."""
