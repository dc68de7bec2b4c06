"""The shipped reference models: a folder of plain Hugging Face files for each."""
