"""The model folder: a trained model without its run, as files that are read as data and never executed."""
