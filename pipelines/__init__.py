"""The pipeline as Dagster software-defined assets. No tensor maths; torch loads inside functions only."""
