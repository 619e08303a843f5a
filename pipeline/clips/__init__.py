"""From the seed to the pixels of a step: the plan, the frames of a clip, decoding, random views. No network sees them here."""
