"""The earlier place of png_bytes: models registered with version 0.1 carry code that imports it here."""

from clipgen_core.data.pixels import png_bytes as png_bytes
