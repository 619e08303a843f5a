"""Compares this project's loader, and training with it, with the loaders of other projects, which are called peers here.

All give the same views to the same two students. Each peer restates in a few lines how a known code base loads clips. The code
of that project is not needed, and none of it is copied.
"""
