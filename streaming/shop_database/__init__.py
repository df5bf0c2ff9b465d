"""The shop's operational database: its tables, what is written into them, and how to read them back.

What a change of the shop is stays in streaming.shop; capturing changes is streaming.capture's.
"""
