"""Tasks that show what a constant-size KV cache keeps and what it loses."""
