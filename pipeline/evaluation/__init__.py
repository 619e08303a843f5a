"""Computes class scores and accuracies of test videos by a trained run, in this process or on a cluster."""
