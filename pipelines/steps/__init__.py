"""The verbs of the loop, one file each: load -> call a room -> save.

What each is and their order: pipelines/line/order.py.
"""
