"""Test videos to class scores and accuracies, by a trained run, in this process or on a cluster."""
