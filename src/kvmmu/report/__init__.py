"""Tables, words and pictures made of result JSON and traces; no model is needed to draw them."""
