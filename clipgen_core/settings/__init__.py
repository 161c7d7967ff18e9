"""Everything that can be set: one frozen config a stage, and the parts they share.

Knows no torch, so that the command line and Dagster read settings without loading a model.
"""
