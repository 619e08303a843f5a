"""Classes of any videos by a trained model: from files, folders, lists and manifests to tables of predictions."""
