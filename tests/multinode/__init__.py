"""A cluster of several machines on one: what happens to a run when nodes, networks, disks or storage fail.

``python -m tests.multinode`` runs it; ``machines.py`` says what such a machine is.
"""
