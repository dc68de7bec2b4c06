"""Tasks, one small file each; base.py is their contract."""
