"""Opens a trained model, from its run folder or its model folder, as what evaluation and prediction need."""
