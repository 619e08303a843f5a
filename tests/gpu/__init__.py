"""What only a GPU can show, in eight minutes: ``python -m tests.gpu``."""
