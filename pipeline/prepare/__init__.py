"""Making the two files with which a run starts, the manifest and the label subset, from folders and lists of videos."""
