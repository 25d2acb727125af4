"""The commands, one file each, and the pipeline that they share.

May import every other room.
"""
