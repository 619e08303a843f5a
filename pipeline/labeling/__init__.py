"""Which unlabeled videos people should label next, and the page on which they do it."""
