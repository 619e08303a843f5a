"""From the seed to the pixels of a step: the plan, the frames of a clip, decoding, and random views. No network is here."""
