"""The maths of a training step: documents, training-time-test attention, losses. No files, no ranks, no recipe."""
