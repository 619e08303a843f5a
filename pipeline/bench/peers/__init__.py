"""This project's loader and step against how others feed video networks: the same views for the same two students.

Each peer restates in a few lines how a known code base loads clips. Its own code is not needed and none of it is copied.
"""
