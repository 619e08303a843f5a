"""Child processes that may crash, hang or take too much memory, and the memory of this one."""
