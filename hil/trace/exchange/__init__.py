"""Files of other tools: read as batches of packed bits, written from them."""
