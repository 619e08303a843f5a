"""The steps between a sampled batch and a checkpoint: the training loop and what it needs, in this process or on a cluster."""
