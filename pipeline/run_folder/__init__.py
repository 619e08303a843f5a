"""What a run or a study leaves in its folder, and its copy on object storage. Read and written here, judged in analysis."""
