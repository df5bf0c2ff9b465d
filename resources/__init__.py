"""Hands out the plain objects that assets work with. Imports catalog, lake, streaming and ml; never assets."""
