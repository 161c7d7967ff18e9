"""Everything that can be set: one frozen config per stage, and the parts that stages share.

The docstring below a setting is its documentation: `clipgen settings`, docs/settings.md and Dagster's
launchpad show it. Knows no torch, so that the command line and Dagster read settings without loading a model.
"""
