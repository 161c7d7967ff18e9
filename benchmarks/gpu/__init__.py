"""What a GPU does with the models of the recipes: `python -m benchmarks gpu`.

Needs neither Lance nor Dagster nor MLflow, which a machine that only trains may lack.
"""
