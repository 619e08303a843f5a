"""Child processes that may crash, hang or take too much memory; and how this process keeps memory that it frees."""
