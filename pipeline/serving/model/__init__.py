"""From the file of an upload to its classes: decoding within limits, batches of scores, the answer."""
