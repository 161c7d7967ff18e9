"""Tests use no network beyond loopback: model hubs are off before anything is imported."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
